// Package exchange serves a client's HTTP/1 connection request by request. Each request goes to the
// laptop of the intercept that takes it, or to the app.
//
// Heads and bodies are passed on byte by byte as they came. A request that a laptop did not take
// goes to the app. What is not plain HTTP/1 leaves the Exchange with the rest of the connection,
// for package raw to pass on. Start with Exchange.
package exchange
