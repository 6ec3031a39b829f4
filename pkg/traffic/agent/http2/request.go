package http2

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Request holds what the fields of a request say.
type Request struct {
	Method, Target string
	length         int64 // of the body; negative when the request gives none
	fields         []hpack.HeaderField
}

var errMalformed = errors.New("a malformed request")

// parseRequest checks the fields of a request by RFC 9113, sections 8.2 and 8.3. The server checks
// the rest.
func parseRequest(f *http2.MetaHeadersFrame) (*Request, error) {
	r := &Request{length: -1, fields: f.Fields, Method: f.PseudoValue("method"), Target: f.PseudoValue("path")}
	if !validPseudoFields(r, f) {
		return nil, errMalformed
	}
	for _, field := range f.RegularFields() {
		if isConnectionField(field) {
			return nil, errMalformed
		}
		if field.Name != "content-length" {
			continue
		}
		n, err := strconv.ParseUint(field.Value, 10, 62)
		if err != nil || (r.length >= 0 && r.length != int64(n)) {
			return nil, errMalformed
		}
		r.length = int64(n)
	}
	if r.length > 0 && f.StreamEnded() {
		return nil, errMalformed
	}
	return r, nil
}

// validPseudoFields reports whether a request has the pseudo-fields that its method needs (RFC
// 9113, sections 8.3.1 and 8.5, and RFC 8441 for the protocol).
func validPseudoFields(r *Request, f *http2.MetaHeadersFrame) bool {
	scheme, protocol := f.PseudoValue("scheme"), f.PseudoValue("protocol")
	switch {
	case r.Method == "" || f.PseudoValue("status") != "":
		return false
	case r.Method == "CONNECT" && protocol == "":
		return r.Target == "" && scheme == "" && f.PseudoValue("authority") != ""
	}
	return r.Target != "" && scheme != "" && (protocol == "" || r.Method == "CONNECT")
}

// Tunnel reports whether the client asks for a connection to another host (RFC 9113, section 8.5).
func (r *Request) Tunnel() bool { return r.Method == "CONNECT" && r.Target == "" }

// Values returns the values of all fields with a name, in any case. The host is the authority.
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

// GRPC reports whether the request is a gRPC call.
func (r *Request) GRPC() bool {
	return slices.ContainsFunc(r.Values("content-type"), func(v string) bool {
		return strings.HasPrefix(v, "application/grpc")
	})
}
