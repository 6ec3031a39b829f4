// Package environment finds out which environment the app's container has in the cluster: the
// variables of its pod, and the ConfigMaps and Secrets that the pod names. It reads them with the
// user's own rights, leaves out what the user may not read, and names that. It also writes the
// environment to files, and merges it with that of a process on the laptop.
//
// Start with Read.
package environment
