// Package session keeps the requests of a client's session at one endpoint (GEP-1619): a
// response that begins a session brings a token, in a cookie or a field, which the
// client sends with its next requests.
//
// A token tells backend and endpoint by hashes of their names, and when the session
// ends: every waypoint of a Gateway reads it without asking another. It gives no rights.
// Whoever makes one up gets to an endpoint that any request of theirs may get to, and
// policy is asked about that as always.
package session

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/waypoint/http1"
)

// Persistence is how the sessions of a rule are kept.
type Persistence struct {
	// name of the cookie, or of the field, which is in lower case.
	name     string
	inHeader bool
	// absolute is how long a session lasts; 0: as long as the client keeps it.
	absolute time.Duration
	// permanent cookies outlive the client's own session.
	permanent bool
	// path below which clients send the cookie.
	path string
}

// Compile reads it; nil stays nil.
func Compile(in *mesh.SessionPersistence) (*Persistence, error) {
	if in == nil {
		return nil, nil
	}
	p := &Persistence{name: in.GetName(), permanent: in.GetPermanent(), absolute: in.GetAbsoluteTimeout().AsDuration(), path: cmp.Or(in.GetPath(), "/")}
	switch in.GetType() {
	case mesh.SessionPersistence_COOKIE:
	case mesh.SessionPersistence_HEADER:
		p.inHeader, p.name = true, strings.ToLower(p.name)
	default:
		return nil, fmt.Errorf("type: %v is not known", in.GetType())
	}
	switch {
	case len(in.ProtoReflect().GetUnknown()) > 0:
		return nil, errors.New("has a field that is not known")
	case !http1.IsToken(p.name):
		return nil, fmt.Errorf("name: %q is no name of a cookie or header", p.name)
	case p.absolute < 0 || p.absolute > maxAbsolute:
		return nil, fmt.Errorf("absolute_timeout: %v, want at most %v", p.absolute, maxAbsolute)
	case in.GetIdleTimeout() != nil:
		return nil, errors.New("idle_timeout: is not carried out by this version")
	case !isPath(p.path):
		return nil, fmt.Errorf("path: %q is no path of a cookie", p.path)
	case p.permanent && (p.inHeader || p.absolute == 0):
		return nil, errors.New("permanent: is for cookies with an absolute_timeout")
	}
	return p, nil
}

// isPath tells whether a cookie may have it (RFC 6265 section 4.1.1).
func isPath(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r >= 0x7f || r == ';' })
}

// maxAbsolute is what browsers keep a cookie for at most (RFC 6265bis).
const maxAbsolute = 400 * 24 * time.Hour

// Token is of one session.
type Token struct {
	backend, endpoint uint64
	ends              int64 // in seconds since 1970; 0: it does not
}

// Begin a session with an endpoint of a backend.
func (p *Persistence) Begin(service string, port uint16, uid string, now time.Time) Token {
	t := Token{backend: backendHash(service, port), endpoint: hash(uid)}
	if p.absolute > 0 {
		t.ends = now.Add(p.absolute).Unix()
	}
	return t
}

// Read finds the token among a request's fields, if there is one of a session that has
// not ended.
func (p *Persistence) Read(fields []http1.Field, now time.Time) (Token, bool) {
	for _, f := range fields {
		switch {
		case p.inHeader && f.Name == p.name:
			return parse(f.Value, now)
		case !p.inHeader && f.Name == "cookie":
			for pair := range strings.SplitSeq(f.Value, ";") {
				if name, value, ok := strings.Cut(strings.TrimSpace(pair), "="); ok && name == p.name {
					return parse(value, now)
				}
			}
		}
	}
	return Token{}, false
}

// Write adds the token to a response's fields.
func (p *Persistence) Write(fields []http1.Field, t Token, now time.Time) []http1.Field {
	if p.inHeader {
		return append(fields, http1.Field{Name: p.name, Value: t.String()})
	}
	cookie := p.name + "=" + t.String() + "; Path=" + p.path + "; HttpOnly; SameSite=Lax"
	if p.permanent {
		cookie += "; Max-Age=" + strconv.FormatInt(t.ends-now.Unix(), 10)
	}
	return append(fields, http1.Field{Name: "set-cookie", Value: cookie})
}

// IsBackend tells whether the session is with this backend.
func (t Token) IsBackend(service string, port uint16) bool {
	return t.backend == backendHash(service, port)
}

// IsEndpoint tells whether the session is with this endpoint.
func (t Token) IsEndpoint(uid string) bool { return t.endpoint == hash(uid) }

// String is the token as clients see it.
func (t Token) String() string {
	var b [24]byte
	binary.BigEndian.PutUint64(b[0:], t.backend)
	binary.BigEndian.PutUint64(b[8:], t.endpoint)
	binary.BigEndian.PutUint64(b[16:], uint64(t.ends))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func parse(s string, now time.Time) (Token, bool) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) != 24 {
		return Token{}, false
	}
	t := Token{binary.BigEndian.Uint64(b[0:]), binary.BigEndian.Uint64(b[8:]), int64(binary.BigEndian.Uint64(b[16:]))}
	return t, t.ends == 0 || now.Unix() < t.ends
}

func backendHash(service string, port uint16) uint64 {
	return hash(service + ":" + strconv.Itoa(int(port)))
}

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}
