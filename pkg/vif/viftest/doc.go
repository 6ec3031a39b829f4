// Package viftest has what tests of the VIF and of packages on top of it need: a laptop and a hub
// that are connected (Pair), in network namespaces that the test program has to itself (Isolate).
package viftest
