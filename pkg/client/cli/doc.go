// Package cli is the detour command line. It is a thin client of the daemon on the laptop: it
// parses flags, asks the daemon and prints the answers.
//
// Start with Command, which builds the tree of commands. Each command has a file of its own,
// cmd_NAME.go, with one options struct. The struct implements commandOptions: Complete takes the
// arguments, Validate refuses mistakes before anything is started, and Run does the work. This is
// kubectl's pattern.
package cli
