package request

import (
	"net/http"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// ReadHTTP2 makes one of what golang.org/x/net/http2 has read. It looks after what the
// library lets pass and RFC 9113 does not: lengths (section 8.1.1) and hosts (8.3.1) that
// differ, and spaces around values (8.2.1). Those are taken off, since clients in Go send
// them: left in, they would be part of a value here, and of none where HTTP/1.1 reads it.
// Trailers are not among the fields.
func ReadHTTP2(in *http.Request) (Request, error) {
	fields := make([]http1.Field, 0, len(in.Header))
	for name, values := range in.Header {
		name = strings.ToLower(name)
		for _, v := range values {
			fields = append(fields, http1.Field{Name: name, Value: strings.Trim(v, " \t")})
		}
	}
	for _, host := range in.Header["Host"] {
		if host != in.Host {
			return Request{}, bad("host and :authority differ")
		}
	}
	if !sameLength(in) {
		return Request{}, bad("content-length")
	}
	return Read(in.Method, in.Host, in.RequestURI, http1.EndToEnd(fields))
}

// sameLength tells whether the field content-length, where there is one, is one number,
// and that of the body: of several the library takes the first, and of malformed ones
// none. That as many bytes come as it says is its own affair.
func sameLength(in *http.Request) bool {
	lengths := in.Header["Content-Length"]
	if len(lengths) == 0 {
		return true
	}
	n, err := http1.ParseLength(lengths[0])
	return len(lengths) == 1 && err == nil && n == in.ContentLength
}
