package cli

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A command line with two mistakes always reports the same one.
func TestTheFirstOfSeveralMistakesIsReported(t *testing.T) {
	t.Setenv("KUBECONFIG", "/nonexistent")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"two empty flags of the intercept": {
			args: []string{"intercept", "catalog", "--port", "8080", "--tls-secret=", "--container=", "--mode="},
			want: "--mode is empty",
		},
		"two empty conditions": {
			args: []string{"intercept", "catalog", "--port", "8080", "--method=", "--path-prefix=", "--path="},
			want: "--path is empty",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range 50 {
				require.Contains(t, failure(t, c.args...), c.want)
			}
		})
	}
}
