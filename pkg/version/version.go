// Package version says which detour this is.
package version

// Version is set by the linker (-X github.com/detour-dev/detour/pkg/version.Version=v0.1.0).
var Version = "v0.1.0-dev"
