package server

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/waypoint/target"
)

// protocol is what a client speaks.
type protocol uint8

const (
	// unsaid: it is to be found out.
	unsaid protocol = iota
	// unsaidHTTP: HTTP of either version.
	unsaidHTTP
	http1
	http2
	// plain TCP, or what is encrypted for somebody else.
	plain
)

// speaks is what the port is said to speak. Where routes for HTTP are attached,
// nothing else is, and where those for connections are, these are no requests: they
// would pass them by.
func speaks(t *target.Target, namespace string) protocol {
	switch routes := t.RoutesFor(namespace); {
	case ofRequests(routes):
		return unsaidHTTP
	case len(routes) > 0:
		return plain
	}
	switch t.Port.App {
	case "TCP", "TLS":
		return plain
	case "HTTP11", "HTTP2", "GRPC":
		// A client may speak either version all the same.
		return unsaidHTTP
	}
	if slices.Contains(serverFirst, t.EndpointPort()) {
		return plain
	}
	return unsaid
}

// serverFirst are ports that IANA gives to protocols in which the server speaks first, and
// on which those are met: FTP, SSH, SMTP, POP3, IMAP, submission, MySQL. Who speaks HTTP
// there says so; who does not is judged without requests, which lets in no more.
var serverFirst = []uint16{21, 22, 25, 110, 143, 587, 3306}

// sniffTimeout is how long a client that says nothing is waited for: many times
// what one needs that speaks first, and little to one that waits for its server.
const sniffTimeout = 200 * time.Millisecond

// preface is how an HTTP/2 client begins: RFC 9113 section 3.4.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// longestMethod is the longest name of a method that is waited for.
const longestMethod = 24

// peeked is a stream whose first bytes were looked at.
type peeked struct {
	hbone.Stream
	head []byte
}

// Read returns what was looked at first.
func (p *peeked) Read(b []byte) (int, error) {
	if len(p.head) > 0 {
		n := copy(b, p.head)
		p.head = p.head[n:]
		return n, nil
	}
	return p.Stream.Read(b)
}

// sniff finds out what the client speaks, by as few bytes as tell. Of one that says
// nothing in time, or ends before it is clear, it is not HTTP.
func (p *peeked) sniff(said protocol, timeout time.Duration) (protocol, error) {
	if said == unsaid {
		p.SetReadDeadline(time.Now().Add(timeout))
		defer p.SetReadDeadline(time.Time{})
	}
	buffer := make([]byte, 0, 512)
	for {
		n, err := p.Stream.Read(buffer[len(buffer):cap(buffer)])
		buffer = buffer[:len(buffer)+n]
		p.head = buffer
		if speaks, clear := guess(buffer); clear {
			if speaks == plain && said == unsaidHTTP {
				return http1, nil // it answers what it cannot read
			}
			return speaks, nil
		}
		switch {
		case err == nil:
		case said == unsaid && errors.Is(err, os.ErrDeadlineExceeded), said == unsaid && errors.Is(err, io.EOF):
			return plain, nil
		case errors.Is(err, io.EOF) && len(buffer) > 0:
			return http1, nil
		default:
			return plain, err
		}
	}
}

// guess tells what begins like this, if that is clear.
func guess(b []byte) (speaks protocol, clear bool) {
	if len(b) == 0 {
		return plain, false
	}
	if n := min(len(b), len(preface)); string(b[:n]) == preface[:n] {
		return http2, n == len(preface)
	}
	method, rest, found := bytes.Cut(b, []byte(" "))
	for _, c := range method {
		if (c < 'A' || c > 'Z') && c != '-' {
			return plain, true
		}
	}
	if !found {
		return plain, len(method) > longestMethod
	}
	if len(method) == 0 || len(rest) > 0 && rest[0] != '/' && rest[0] != '*' && !(rest[0] >= 'a' && rest[0] <= 'z') && !(rest[0] >= 'A' && rest[0] <= 'Z') && !(rest[0] >= '0' && rest[0] <= '9') && rest[0] != '[' {
		return plain, true
	}
	line, _, whole := bytes.Cut(rest, []byte("\n"))
	if !whole {
		return http1, len(rest) > 0 && len(b) == cap(b)
	}
	// A request line ends with the version; what else begins with a word in capitals is
	// some other protocol's.
	if bytes.Contains(line, []byte(" HTTP/1.")) {
		return http1, true
	}
	return plain, true
}
