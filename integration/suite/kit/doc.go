// Package kit holds the tools of the suite: it runs detour and kubectl, makes laptops and users,
// deploys services, sends requests and waits. The tests themselves are in the package above, and
// read as what a person does and sees.
//
// A test starts with Connect, which connects the machine that runs the suite, or with NewLaptop,
// which makes a laptop with a network of its own. Parallel lets a test run beside others that do
// not change what it needs.
package kit
