package hbone

import (
	"net"
	"time"
)

// discard is a connection that takes everything and gives nothing.
type discard struct{}

func (discard) Read([]byte) (int, error)         { select {} }
func (discard) Write(p []byte) (int, error)      { return len(p), nil }
func (discard) Close() error                     { return nil }
func (discard) LocalAddr() net.Addr              { return nil }
func (discard) RemoteAddr() net.Addr             { return nil }
func (discard) SetDeadline(time.Time) error      { return nil }
func (discard) SetReadDeadline(time.Time) error  { return nil }
func (discard) SetWriteDeadline(time.Time) error { return nil }

func (r recorder) Write(p net.Buffers) {
	for _, b := range p {
		r.Take(b)
	}
}
