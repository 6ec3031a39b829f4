package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

// Each request is one line. What other people wrote does not control the terminal.
func TestOneLineForEachRequest(t *testing.T) {
	at := timestamppb.New(time.Date(2030, 1, 2, 3, 4, 5, 6e6, time.UTC))
	for name, c := range map[string]struct {
		request *tailv1.Request
		text    string
		json    string
	}{
		"to a laptop": {
			request: &tailv1.Request{
				At:       at,
				Duration: durationpb.New(1234 * time.Microsecond),
				Pod:      "catalog-1",
				Port:     8080,
				Method:   "GET",
				Path:     "/items",
				Status:   200,
				ServedBy: tailv1.ServedBy_SERVED_BY_LAPTOP,
				Laptop:   "alice@mac",
				Why:      "header x-dev matches alice@mac's intercept",
			},
			text: "GET     /items                         200     1.23ms  laptop   header x-dev matches alice@mac's " +
				"intercept\n",
			json: `"method":"GET","path":"/items","status":200,"durationMs":1.234,"servedBy":"laptop",` +
				`"laptop":"alice@mac","why":"header x-dev matches alice@mac's intercept",` +
				`"pod":"catalog-1","port":8080}` + "\n",
		},
		"gRPC": {
			request: &tailv1.Request{
				At:         at,
				Method:     "POST",
				Path:       "/shop.Stock/Count",
				Status:     200,
				GrpcStatus: proto.Uint32(5),
				ServedBy:   tailv1.ServedBy_SERVED_BY_CLUSTER,
				Why:        "no intercept",
			},
			text: "POST    /shop.Stock/Count              NotFound        0s  cluster  no intercept\n",
			json: `"method":"POST","path":"/shop.Stock/Count","status":200,"grpcStatus":"NotFound","durationMs":0,` +
				`"servedBy":"cluster","why":"no intercept","pod":"","port":0}` + "\n",
		},
		"not HTTP": {
			request: &tailv1.Request{At: at, Why: "no intercept"},
			text:    "TCP     -                              -           0s  nobody   no intercept\n",
			json:    `"durationMs":0,"servedBy":"nobody","why":"no intercept","pod":"","port":0}` + "\n",
		},
		"escape sequences": {
			request: &tailv1.Request{
				At:       at,
				Method:   "GET",
				Path:     "/\x1b[2J\u009b2J\u202e",
				ServedBy: tailv1.ServedBy_SERVED_BY_CLUSTER,
			},
			text: "GET     /�[2J�2J�                      -           0s  cluster  \n",
			json: `"method":"GET","path":"/\u001b[2J` + "\u009b2J\u202e" + `","durationMs":0,` +
				`"servedBy":"cluster","why":"","pod":"","port":0}` + "\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for format, want := range map[string]string{"": c.text, "json": c.json} {
				var out bytes.Buffer
				require.NoError(t, printRequest(&out, format, newRequestLine(c.request)))
				assert.True(t, strings.HasSuffix(out.String(), want), "%q", out.String())
				assert.Equal(t, 1, strings.Count(out.String(), "\n"))
			}
		})
	}
}
