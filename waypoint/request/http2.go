package request

import (
	"net/http"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// ReadHTTP2 makes one of what golang.org/x/net/http2 has read. It looks after what the
// library lets pass and RFC 9113 does not: lengths (section 8.1.1) and hosts (8.3.1) that
// differ. Trailers are not among the fields.
func ReadHTTP2(in *http.Request) (Request, error) {
	for _, host := range in.Header["Host"] {
		if host != in.Host {
			return Request{}, bad("host and :authority differ")
		}
	}
	if !sameLength(in) {
		return Request{}, bad("content-length")
	}
	return Read(in.Method, in.Host, in.RequestURI, http1.EndToEnd(FieldsOf(in.Header)))
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

// FieldsOf are those of a head, or of trailers, that the library has read. Spaces around
// values are malformed (RFC 9113 section 8.2.1), and clients in Go send them: they are taken
// off, since they would be part of a value here, and of none where HTTP/1.1 reads it.
func FieldsOf(header http.Header) []http1.Field {
	out := make([]http1.Field, 0, len(header))
	for name, values := range header {
		name = strings.ToLower(name)
		for _, v := range values {
			out = append(out, http1.Field{Name: name, Value: strings.Trim(v, " \t")})
		}
	}
	return out
}
