package http2

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Request is what a request's fields say.
type Request struct {
	Method, Target string
	length         int64 // of the body; negative when it does not say
	fields         []hpack.HeaderField
}

var errMalformed = errors.New("a malformed request")

// request checks the fields of a request as RFC 9113, 8.2 and 8.3 have it; more the server does.
func request(f *http2.MetaHeadersFrame) (*Request, error) {
	r := &Request{length: -1, fields: f.Fields, Method: f.PseudoValue("method"), Target: f.PseudoValue("path")}
	scheme, protocol := f.PseudoValue("scheme"), f.PseudoValue("protocol")
	switch {
	case r.Method == "" || f.PseudoValue("status") != "":
		return nil, errMalformed
	case r.Method == "CONNECT" && protocol == "":
		if r.Target != "" || scheme != "" || f.PseudoValue("authority") == "" {
			return nil, errMalformed
		}
	case r.Target == "" || scheme == "" || (protocol != "" && r.Method != "CONNECT"):
		return nil, errMalformed
	}
	for _, field := range f.RegularFields() {
		if connection(field) {
			return nil, errMalformed
		}
		if field.Name == "content-length" {
			n, err := strconv.ParseUint(field.Value, 10, 62)
			if err != nil || (r.length >= 0 && r.length != int64(n)) {
				return nil, errMalformed
			}
			r.length = int64(n)
		}
	}
	if r.length > 0 && f.StreamEnded() {
		return nil, errMalformed
	}
	return r, nil
}

// Tunnel says whether the client asks for a connection to somewhere else (RFC 9113, 8.5).
func (r *Request) Tunnel() bool { return r.Method == "CONNECT" && r.Target == "" }

// Values are the values of all fields with a name, whatever its case. The host is the authority.
func (r *Request) Values(name string) []string {
	name = strings.ToLower(name)
	var all []string
	for _, f := range r.fields {
		if (f.Name == name || (name == "host" && f.Name == ":authority")) && !slices.Contains(all, f.Value) {
			all = append(all, f.Value)
		}
	}
	return all
}

// GRPC says whether it is a call of gRPC.
func (r *Request) GRPC() bool {
	return slices.ContainsFunc(r.Values("content-type"), func(v string) bool { return strings.HasPrefix(v, "application/grpc") })
}
