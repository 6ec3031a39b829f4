package cli

import (
	"os"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/detour-dev/detour/pkg/client/credential"
	"github.com/detour-dev/detour/pkg/rootless"
)

// The commands of this file are hidden: the daemon starts them, not the user.

func newNamespaceHelperCommand() *cobra.Command {
	return &cobra.Command{
		Use:    rootless.HelperCommand,
		Short:  "Hold the namespaces of the rootless mode",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return rootless.RunHelper(os.NewFile(3, "daemon")) },
	}
}

func newCredentialCommand(streams genericiooptions.IOStreams) *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:    credential.Command,
		Short:  "Run a credential plugin for the daemon",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if path != "" {
				return credential.PrintToken(streams.Out, path)
			}
			return credential.Run()
		},
	}
	cmd.Flags().StringVar(&path, credential.TokenFlag, "", "print the token in this file")
	return cmd
}
