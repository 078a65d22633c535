package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	// helloTimeout is how long a client of TLS may take to begin.
	helloTimeout = 10 * time.Second
	// maxHello is what it may begin with: what crypto/tls takes for a message.
	maxHello = 64 << 10
)

// serverName reads the name that a client of TLS asks for, empty if it asks for none.
// What was read stays to be read.
func (p *peeked) serverName() (string, error) {
	p.SetReadDeadline(time.Now().Add(helloTimeout))
	defer p.SetReadDeadline(time.Time{})
	read := errors.New("read")
	var name string
	err := tls.Server(&looking{peeked: p}, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		name = strings.ToLower(hello.ServerName)
		return nil, read
	}}).Handshake()
	if !errors.Is(err, read) {
		return "", fmt.Errorf("what the client begins with is no TLS: %w", err)
	}
	return name, nil
}

// looking reads a stream and leaves all of it there. Nobody is answered.
type looking struct {
	*peeked
	at int
}

func (l *looking) Read(b []byte) (int, error) {
	if l.at == len(l.head) {
		if len(l.head) >= maxHello {
			return 0, fmt.Errorf("more than %d bytes", maxHello)
		}
		more := make([]byte, min(len(b), maxHello-len(l.head)))
		n, err := l.Stream.Read(more)
		l.head = append(l.head, more[:n]...)
		if n == 0 {
			return 0, err
		}
	}
	n := copy(b, l.head[l.at:])
	l.at += n
	return n, nil
}

func (l *looking) Write(b []byte) (int, error) { return len(b), nil }
