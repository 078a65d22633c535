// Package http1 reads and writes messages of HTTP/1.1 (RFC 9112) as a proxy has to:
// the framing of both sides, and the heads of responses.
//
//	reader.go    bytes of a connection: a head, or what follows it
//	body.go      by length, in chunks, until the end
//	response.go  the head of a response -> status, fields, how its body is framed
//	write.go     heads and chunks
//
// Invariants: how long a message is can be read in one way only, or it is an error; a
// head, a line of a chunk and trailers are bounded; nothing is read from a connection
// beyond what was asked for and the buffer holds.
//
// Heads of requests are package request's: what they mean is everybody's business.
package http1

import "errors"

// Field is one of a message's; its name is in lower case.
type Field struct {
	Name, Value string
}

const (
	// MaxHead is how long a head may be: what the field's servers take.
	MaxHead = 64 << 10
	// maxTrailers bounds all trailers of a message.
	maxTrailers = 8 << 10
	// maxChunkLine is the size of a chunk, and extensions that nobody uses.
	maxChunkLine = 256
	// bufferSize is what is read at once; heads that are longer get their own.
	bufferSize = 8 << 10
)

var (
	// ErrMalformed is wrapped by errors of messages that are not as they should be.
	ErrMalformed = errors.New("malformed message")
	// ErrTooLong is wrapped by errors of heads and trailers that are too long.
	ErrTooLong = errors.New("too long")
)
