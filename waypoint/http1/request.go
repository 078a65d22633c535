package http1

import (
	"fmt"
	"strings"
)

// Request is the head of one.
type Request struct {
	Method, Target string
	// Host is what the field of that name says.
	Host string
	// Fields, those about the connection included. Append leaves out te, and is not to be
	// given the others.
	Fields []Field
	// Framing and Length of its body; Length is -1 of Chunked, and 0 of none.
	Framing Framing
	Length  int64
	// Minor version of HTTP/1.
	Minor int
	// Close: the client sends no other after it.
	Close bool
	// Upgrade is what the client wants to go on with; empty for nothing else.
	Upgrade string
}

// ParseRequest reads a head, as Reader.Head returns it.
func ParseRequest(head []byte) (r Request, err error) {
	text := string(head[:len(head)-2]) // the fields' memory
	line, rest, _ := strings.Cut(text, "\r\n")
	if err := r.requestLine(line); err != nil {
		return r, err
	}
	r.Fields = make([]Field, 0, strings.Count(rest, "\r\n"))
	for rest != "" {
		line, rest, _ = strings.Cut(rest, "\r\n")
		f, err := ParseField(line)
		if err != nil {
			return r, err
		}
		r.Fields = append(r.Fields, f)
	}
	return r, r.frame()
}

// requestLine is that of RFC 9112 section 3. What its method and target are is package
// request's to say.
func (r *Request) requestLine(line string) error {
	var version string
	r.Method, line, _ = strings.Cut(line, " ")
	r.Target, version, _ = strings.Cut(line, " ")
	switch version {
	case "HTTP/1.1":
		r.Minor = 1
	case "HTTP/1.0":
		r.Close = true
	default:
		return fmt.Errorf("version: %w", ErrMalformed)
	}
	return nil
}

// frame finds out what the connection's fields say: RFC 9112 section 6.3. What could be
// read in two ways is an error.
func (r *Request) frame() error {
	bad := func(what string) error { return fmt.Errorf("%s: %w", what, ErrMalformed) }
	var hosts, lengths, codings int
	wants, announced := false, false
	for _, f := range r.Fields {
		switch f.Name {
		case "host":
			hosts++
			r.Host = f.Value
		case "content-length":
			n, err := ParseLength(f.Value)
			if err != nil {
				return bad("content-length")
			}
			lengths++
			r.Length = n
		case "transfer-encoding":
			codings++
			if !strings.EqualFold(f.Value, "chunked") || r.Minor == 0 {
				return bad("transfer-encoding")
			}
		case "connection":
			r.Close = r.Close || HasToken(f.Value, "close")
			wants = wants || HasToken(f.Value, "upgrade")
		case "trailer":
			announced = announced || announcesFraming(f.Value)
		}
	}
	switch {
	case hosts != 1:
		return bad("host")
	case lengths > 1 || codings > 1 || lengths+codings > 1:
		return bad("content-length, transfer-encoding")
	case codings == 1 && announced:
		return bad("trailer")
	case codings == 1:
		r.Framing, r.Length = Chunked, -1
	case r.Length > 0:
		r.Framing = Length
	}
	if wants && r.Framing == None && r.Minor == 1 {
		r.Upgrade = r.upgrade()
	}
	return nil
}

// upgrade is the protocol that a request offers to go on with: RFC 9110 section 7.8. Of a
// connection that goes on with HTTP nobody would judge the requests: who offers that,
// among others, gets none.
func (r *Request) upgrade() (offered string) {
	for _, f := range r.Fields {
		if f.Name != "upgrade" {
			continue
		}
		for one := range strings.SplitSeq(f.Value, ",") {
			name, _, _ := strings.Cut(strings.ToLower(strings.Trim(one, " \t")), "/")
			if name == "h2c" || name == "h2" || name == "http" || name == "tls" {
				return ""
			}
		}
		offered = f.Value
	}
	return offered
}

// Append adds the head to b: what ParseRequest reads as the same again.
func (r *Request) Append(b []byte) []byte {
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = append(b, r.Target...)
	b = append(b, " HTTP/1.1\r\nhost: "...)
	b = append(b, r.Host...)
	b = append(b, "\r\n"...)
	for i := range r.Fields {
		if r.Fields[i].Name == "te" {
			continue // of this connection, which has its own
		}
		b = AppendField(b, r.Fields[i].Name, r.Fields[i].Value)
	}
	if r.Upgrade != "" {
		b = append(b, "connection: upgrade\r\nupgrade: "...)
		b = append(b, r.Upgrade...)
		b = append(b, "\r\n"...)
	}
	b = AppendFraming(b, r.Framing, r.Length)
	return append(b, "\r\n"...)
}
