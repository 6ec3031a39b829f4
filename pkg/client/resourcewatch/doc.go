// Package resourcewatch keeps local copies of the cluster's objects equal to the cluster, with
// client-go's reflector. Unlike an informer it reports whether a copy can be trusted now, and it
// restarts a watch whose connection has died without a word. Start with Follower; Objects is a
// store for it, and Group runs several followers.
package resourcewatch
