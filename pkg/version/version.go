// Package version holds the version of this build.
package version

// Version is set by the linker (-X github.com/detour-dev/detour/pkg/version.Version=v0.1.0).
var Version = "v0.1.0-dev"
