package exchange

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestAddCloseComesFirst(t *testing.T) {
	assert.Equal(t, "HTTP/1.1 200 OK\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n",
		string(addClose([]byte("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n"))))
	assert.Equal(t, "HTTP/1.1 204\r\nConnection: close\r\n\r\n", string(addClose([]byte("HTTP/1.1 204\r\n\r\n"))))
}
