// Package hbone carries TCP connections as streams of a tunnel: HTTP/2 CONNECT
// (RFC 9113 section 8.5) over mutual TLS, as the ambient meshes speak it.
//
//	client.go   Open: one CONNECT, one stream
//	server.go   Serve: an Incoming for each CONNECT, to Accept or Refuse
//	stream.go   a net.Conn with half-close, reset and deadlines
//	session.go  what both sides share: settings, pings, the end
//	write.go    the queue of frames, and who writes it
//	read.go     frames in; control.go, receive.go: control frames, data
//	late.go     frames for streams that are no more
//	inbox.go    what was received and not yet taken
//	frame.go    frames to bytes and back; headers.go: blocks of headers
//	buffer.go   memory for frames; rate.go: how much a tunnel carries
//	wire.go     the TCP connection beneath TLS
//	limits.go   what a peer may make this side hold or do; fault.go: what it did
//
// Bytes are copied as little as TLS allows. Who reads a socket reads into a
// [Buffer] and passes it on; a [Sink] gets bytes from the reading goroutine
// itself. Memory for bulk is taken from pools once bytes are there, and given
// back before the next wait, so that an idle stream holds none.
//
// Invariants: the reading goroutine of a tunnel never waits for a stream or for
// a write, so no stream holds up another's control frames; a stream reads EOF
// only if the peer closed its half in order; what a peer can make this side
// buffer is bounded for a stream and for a tunnel; when Serve or Close returns,
// so has every goroutine they started, but those that give a sink what came
// before the end: they end with its Write.
//
// Who the peer is was settled before, by TLS (package certs); whether it may
// connect where it asks is the caller's to decide.
package hbone

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/net/http2"
)

// Stream is one tunnelled connection. Its deadlines work as those of a TCP
// connection do; Read, Write and the rest may be called concurrently.
type Stream interface {
	// Read returns io.EOF once the peer has closed its half in order, and an
	// error for which errors.Is(err, ErrReset) holds if the peer reset the
	// stream, after the bytes that arrived before. A stream whose tunnel died
	// fails with an error for which errors.Is(err, ErrTunnelClosed) holds.
	//
	// Close resets the stream unless both halves were closed before: what was
	// cut short must not look complete to the peer.
	net.Conn
	// CloseWrite closes the sending half: the peer reads io.EOF after what was
	// written.
	CloseWrite() error
	// Reset ends the stream so that the peer's reads and writes fail, as a TCP
	// RST does.
	Reset() error
	// WriteBuffer writes b, which it takes over, and returns how many bytes of it
	// will be written.
	WriteBuffer(b *Buffer) (int, error)
	// Pending tells whether Read has something to return without waiting, the end included.
	Pending() bool
	// Divert gives what was received, and what will be, to sink. It takes the
	// place of Read.
	Divert(sink Sink)
}

// Sink takes what a stream receives, in order. The calls do not overlap, but
// that End may come while Write waits if the stream failed.
type Sink interface {
	// Take takes as many bytes of p as it can without waiting: no other stream of
	// the tunnel may get anything until it returns.
	Take(p []byte) int
	// Write takes what Take did not. It may wait; meanwhile nothing else comes.
	Write(p net.Buffers)
	// End comes after the last byte, with io.EOF. When the stream failed it comes
	// after what Take takes, and during a Write that waits; what was not given by
	// then never is. It does not come once the stream was closed or reset by this
	// side.
	End(err error)
}

// HeaderReason carries, in a refusal, a few words for whoever reads the logs.
const HeaderReason = "X-Ambit-Reason"

var (
	// ErrReset is wrapped by the errors of a stream that either side reset.
	ErrReset = errors.New("stream reset")
	// ErrTunnelClosed is wrapped by the errors of a stream whose tunnel ended.
	ErrTunnelClosed = errors.New("tunnel closed")
	// ErrNotProcessed is wrapped by errors of [Client.Open] after which the
	// peer is known not to have acted on the request: another tunnel may be
	// tried without doing anything twice.
	ErrNotProcessed = errors.New("request not processed")
	// ErrPeerSilent is why a tunnel ended whose peer no longer answers pings.
	ErrPeerSilent = errors.New("peer does not answer pings")
)

// ResetError is the end of a stream that was reset. errors.Is(err, ErrReset) holds.
type ResetError struct {
	Code http2.ErrCode
	// Remote tells that the peer reset the stream.
	Remote bool
}

func (e *ResetError) Error() string {
	by := "by this side"
	if e.Remote {
		by = "by the peer"
	}
	return fmt.Sprintf("stream reset %s: %s", by, strings.ToLower(e.Code.String()))
}

// Is makes every ResetError an ErrReset.
func (e *ResetError) Is(target error) bool { return target == ErrReset }

// StatusError is a request that the peer answered with another status than 200.
type StatusError struct {
	Code int
	// Reason is the peer's [HeaderReason], made printable; often empty.
	Reason string
}

func (e *StatusError) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("peer answered %d", e.Code)
	}
	return fmt.Sprintf("peer answered %d: %s", e.Code, e.Reason)
}

// Options are a tunnel's times. The zero value is what production uses.
type Options struct {
	// PingEvery is how often it is looked whether anything came from the peer, and
	// an answer demanded if nothing did; 2 s if zero.
	PingEvery time.Duration
	// PingTimeout is how long the peer may stay silent after that; 5 s if zero.
	PingTimeout time.Duration
	// DrainTimeout is how long [Serve] lets streams finish once its context
	// ended; 25 s if zero, at once if negative.
	DrainTimeout time.Duration
}
