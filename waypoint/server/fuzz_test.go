package server

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// pieces is a stream of which some bytes come at a time, and then the end.
type pieces struct {
	hbone.Stream // what nobody calls
	rest         []byte
	size         int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size)], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (p *pieces) SetReadDeadline(time.Time) error { return nil }

// hello is how a client of TLS begins that asks for a name.
func hello(f *testing.F, name string) []byte {
	mine, theirs := net.Pipe()
	defer mine.Close()
	go func() {
		tls.Client(theirs, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
		theirs.Close()
	}()
	buffer := make([]byte, 4096)
	n, err := mine.Read(buffer)
	if err != nil {
		f.Fatal(err)
	}
	return buffer[:n]
}

// FuzzBegin: however a client begins, and in what pieces, what was looked at is there to be read as it came, whether it is taken for
// HTTP, for TLS or for neither; and what is taken for HTTP/2 begins as that does.
func FuzzBegin(f *testing.F) {
	for _, begin := range [][]byte{
		nil, []byte(preface), []byte(preface[:9]), []byte("GET / HTTP/1.1\r\n\r\n"), []byte("GET / FTP\n"), []byte("EHLO x\r\n"),
		bytes.Repeat([]byte("G"), 600), []byte("OPTIONS * HTTP/1.1\r\n"), hello(f, "shop.example"), hello(f, ""), {22, 3, 1, 255, 255},
	} {
		f.Add(begin, uint16(7))
	}
	f.Fuzz(func(t *testing.T, begin []byte, size uint16) {
		left := func(p *peeked) {
			t.Helper()
			if got, err := io.ReadAll(p); err != nil || !bytes.Equal(got, begin) {
				t.Errorf("%q is left of %q, %v", got, begin, err)
			}
		}
		for _, said := range []protocol{unsaid, unsaidHTTP} {
			p := &peeked{Stream: &pieces{rest: begin, size: int(size) + 1}}
			speaks, err := p.sniff(said, time.Second)
			if err != nil && !(errors.Is(err, io.EOF) && len(begin) == 0) {
				t.Errorf("%q: %v", begin, err)
			}
			if speaks == http2 && !bytes.HasPrefix(begin, []byte(preface)) || speaks == unsaid || speaks == unsaidHTTP {
				t.Errorf("%q is taken for %d", begin, speaks)
			}
			left(p)
		}
		p := &peeked{Stream: &pieces{rest: begin, size: int(size) + 1}}
		name, err := p.serverName()
		if err != nil && name != "" || name != strings.ToLower(name) {
			t.Errorf("%q: name %q, %v", begin, name, err)
		}
		if len(p.head) > maxHello {
			t.Errorf("%d bytes are kept", len(p.head))
		}
		left(p)
	})
}
