package session

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// A cluster that does not answer may have the API: only one that answers can be known to lack it.
func TestHasServiceCIDRs(t *testing.T) {
	kind := networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR")
	with := meta.NewDefaultRESTMapper(nil)
	with.Add(kind, meta.RESTScopeRoot)
	has, err := hasServiceCIDRs(with)
	require.NoError(t, err)
	assert.True(t, has)

	has, err = hasServiceCIDRs(meta.NewDefaultRESTMapper(nil))
	require.NoError(t, err)
	assert.False(t, has)

	closed := httptest.NewServer(nil)
	closed.Close()
	unreachable, err := apiutil.NewDynamicRESTMapper(&rest.Config{Host: closed.URL}, http.DefaultClient)
	require.NoError(t, err)
	_, err = hasServiceCIDRs(unreachable)
	require.ErrorContains(t, err, "ask for the API of service networks")
}
