// Package install puts detour's in-cluster side into a cluster, and removes all of it again. It
// uses Helm, so that `helm ls` shows the release.
//
// Start with NewInstallCommand and NewUninstallCommand. They talk to the cluster themselves,
// because there is no session without an installation.
package install
