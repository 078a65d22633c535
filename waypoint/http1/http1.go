// Package http1 reads and writes messages of HTTP/1.1 (RFC 9112) as a proxy has to:
// the heads of both sides, and how what follows them is framed.
//
//	reader.go    bytes of a connection: a head, or what follows it
//	request.go   the head of a request <-> method, target, fields, how its body is framed
//	fields.go    which are about the connection
//	body.go      by length, in chunks, until the end
//	response.go  the head of a response -> status, fields, how its body is framed
//	write.go     heads and chunks
//
// Invariants: how long a message is can be read in one way only, or it is an error; a
// head, a line of a chunk and trailers are bounded; nothing is read from a connection
// beyond what was asked for and the buffer holds. What is read here net/http reads as the
// same, which fuzzers hold: there is no message that one of both takes for another.
//
// What the target and the host of a request mean is package request's.
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
	// maxDigits of a chunk's size: what 64 bits have.
	maxDigits = 16
	// bufferSize is what is read at once; heads that are longer get their own.
	bufferSize = 8 << 10
)

var (
	// ErrMalformed is wrapped by errors of messages that are not as they should be.
	ErrMalformed = errors.New("malformed message")
	// ErrTooLong is wrapped by errors of heads and trailers that are too long.
	ErrTooLong = errors.New("too long")
)
