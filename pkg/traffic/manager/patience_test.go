package manager

import (
	"context"
	"errors"
	"log/slog"
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

func TestPatiently(t *testing.T) {
	ill := errors.New("ill")
	tries := 0
	require.NoError(t, patiently(t.Context(), slog.New(slog.DiscardHandler), func(context.Context) error {
		if tries++; tries < 3 {
			return ill
		}
		return nil
	}))
	assert.Equal(t, 3, tries)

	ctx, cancel := context.WithCancel(t.Context())
	tries = 0
	require.ErrorIs(t, patiently(ctx, slog.New(slog.DiscardHandler), func(context.Context) error {
		if tries++; tries == 2 {
			cancel()
		}
		return ill
	}), ill)
	assert.Equal(t, 2, tries, "it ends with its context")
}

// Only a cluster that says so does not have the API: one that cannot be asked may have it.
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

	nobody := httptest.NewServer(nil)
	nobody.Close()
	unreachable, err := apiutil.NewDynamicRESTMapper(&rest.Config{Host: nobody.URL}, http.DefaultClient)
	require.NoError(t, err)
	_, err = hasServiceCIDRs(unreachable)
	require.ErrorContains(t, err, "ask for the API of service networks")
}
