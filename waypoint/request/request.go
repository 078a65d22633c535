// Package request is the one reading of a request that router, policy and log share.
//
//	request.go  Request, and Read: what a message says -> its canonical form
//	http2.go    ReadHTTP2: a request of HTTP/2, as the library has read it -> its canonical form
//	path.go     paths
//	host.go     hosts
//
// What goes on to an endpoint is written from the canonical form, so that nobody decides
// about something else than what is sent. What others may read in another way is an
// error, and answered with 400:
//
//	of a path        what becomes of it
//	%61, %2d         decoded: unreserved characters (RFC 3986 section 6.2.2.2)
//	%c3%a9           %C3%A9 (section 6.2.2.1)
//	/a/./b, /a/../b  /a/b, /b (section 5.2.4), also where the dots were encoded
//	//               /
//	^ ` { | }        encoded: they are no characters of a path
//	/.. at the root  error: some stop there, some do not
//	%2F, %5C, \      error: some take them for separators
//	;                error: some cut what follows, /admin;x is their /admin
//	%252F            error: some decode twice
//	%00-%1F, %7F     error, as the characters themselves
//	%zz, %FF         error: no encoding, and no UTF-8
//	# " < >, space, bytes beyond ASCII  error
//
// Other characters mean something else encoded than as themselves (section 2.2), and stay as
// they are. To most endpoints they do not: what must not depend on that has [Plain].
//
// A query is kept as it came, of the characters that a path may have, and / ? ; and
// encodings, whatever they stand for. A host is in lower case, without a dot at its end
// and without its port, of which 80 is none; addresses are in their one form; there are no
// users.
//
// Invariants: what Read returns it reads as the same again; a Path begins with / or is
// *, and has only characters of RFC 3986 section 3.3; nothing of a Request changes.
//
// How messages are framed is package http1's.
package request

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// ErrAmbiguous is wrapped by errors of requests that could be read in two ways, or not
// at all.
var ErrAmbiguous = errors.New("ambiguous request")

// DefaultPort is the one of a host without any.
const DefaultPort = 80

// maxTarget is how long a path and its query may be: RFC 9110 section 4.1 wants 8000 at
// least.
const maxTarget = 16 << 10

// Request is the canonical form of one.
type Request struct {
	Method string
	// Host in lower case, without its port; an IPv6 address stands in brackets.
	Host string
	// Port that the client named; 0 for none, and for the one that is meant then: RFC 9110
	// section 4.2.1.
	Port uint16
	Path string
	// Query as it came, with its question mark; empty for none.
	Query string
	// Fields without those about the connection; names are in lower case.
	Fields []http1.Field
}

// Read makes one of what a message says. The target is that of HTTP/1.1's request line
// or HTTP/2's :path.
func Read(method, authority, target string, fields []http1.Field) (Request, error) {
	r := Request{Method: method, Fields: fields}
	if !http1.IsToken(method) || method == "CONNECT" {
		return Request{}, bad("method")
	}
	if len(target) > maxTarget {
		return Request{}, bad("target: too long")
	}
	var err error
	if r.Host, r.Port, err = readHost(authority); err != nil {
		return Request{}, err
	}
	if target, err = r.origin(target); err != nil {
		return Request{}, err
	}
	if target == "*" && method == "OPTIONS" {
		r.Path = target
		return r, nil
	}
	path, query := target, ""
	if i := strings.IndexByte(target, '?'); i >= 0 {
		path, query = target[:i], target[i:]
	}
	if r.Path, err = Path(path); err != nil {
		return Request{}, err
	}
	if !validQuery(query) {
		return Request{}, bad("query")
	}
	r.Query = query
	return r, nil
}

// origin takes what stands before the path off a target in absolute form: RFC 9112
// section 3.2.2. It must say what the host does.
func (r *Request) origin(target string) (string, error) {
	const scheme = "http://"
	if len(target) < len(scheme) || !strings.EqualFold(target[:len(scheme)], scheme) {
		return target, nil
	}
	rest := target[len(scheme):]
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	host, port, err := readHost(rest[:end])
	if err != nil {
		return "", err
	}
	if host != r.Host || port != r.Port {
		return "", bad("target: names another host than the field host")
	}
	if rest = rest[end:]; rest == "" || rest[0] == '?' {
		rest = "/" + rest
	}
	return rest, nil
}

// Authority is the host and the port that was named.
func (r *Request) Authority() string {
	if r.Port == 0 {
		return r.Host
	}
	return r.Host + ":" + strconv.Itoa(int(r.Port))
}

// Target is the path and the query.
func (r *Request) Target() string { return r.Path + r.Query }

// Values are those of a field, whose name is in lower case, one after the other.
func (r *Request) Values(name string, yield func(string) bool) {
	for i := range r.Fields {
		if r.Fields[i].Name == name && !yield(r.Fields[i].Value) {
			return
		}
	}
}

// validQuery takes characters that mean the same to everybody.
func validQuery(query string) bool {
	for i := range len(query) {
		switch c := query[i]; {
		case c <= ' ' || c >= 0x7f, c == '#', c == '\\', c == '"', c == '<', c == '>':
			return false
		}
	}
	return true
}

func bad(what string) error { return fmt.Errorf("%s: %w", what, ErrAmbiguous) }
