package http1

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"strings"
)

// Framing is how the end of a body is found.
type Framing uint8

const (
	// None: there is no body.
	None Framing = iota
	// Length: so many bytes.
	Length
	// Chunked: in chunks, the last of which is empty, and trailers.
	Chunked
	// UntilEnd: as long as the connection; of responses alone.
	UntilEnd
)

// Body reads one.
type Body struct {
	reader  *Reader
	framing Framing
	left    int64 // of the body, or of the chunk
	begun   bool  // a chunk is over that was not the last
	done    bool
	// Trailers that came after the chunks, once Read has returned io.EOF.
	Trailers []Field
}

// NewBody reads a body from r; length is that of Length alone.
func NewBody(r *Reader, framing Framing, length int64) *Body {
	if framing != Length {
		length = 0
	}
	return &Body{reader: r, framing: framing, left: length, done: framing == None || framing == Length && length == 0}
}

// Done tells that the body was read to its end, so that another message follows it.
func (b *Body) Done() bool { return b.done }

// Ready tells whether Read has something to give without waiting for the connection.
func (b *Body) Ready() bool {
	buffered := b.reader.buffer[b.reader.r:b.reader.w]
	if b.framing != Chunked || b.left > 0 {
		return len(buffered) > 0
	}
	if b.begun {
		buffered = buffered[min(len(buffered), len("\r\n")):]
	}
	line := bytes.IndexByte(buffered, '\n')
	return line >= 0 && len(buffered) > line+1
}

// Read returns io.EOF at the body's end, and io.ErrUnexpectedEOF where the connection
// ends before.
func (b *Body) Read(p []byte) (int, error) {
	if b.done {
		return 0, io.EOF
	}
	switch b.framing {
	case UntilEnd:
		n, err := b.reader.Read(p)
		if err == io.EOF {
			b.done = true
		}
		return n, err
	case Chunked:
		if b.left == 0 {
			if err := b.nextChunk(); err != nil {
				return 0, err
			}
			if b.done {
				return 0, io.EOF
			}
		}
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.reader.Read(p)
	b.left -= int64(n)
	if b.left == 0 && b.framing == Length {
		b.done = true
		return n, nil
	}
	if n > 0 {
		return n, nil
	}
	return 0, unexpected(err)
}

// nextChunk reads what is between two chunks, or after the last.
func (b *Body) nextChunk() error {
	if b.begun {
		end, err := b.reader.line(len("\r"))
		if err != nil {
			return err
		}
		if len(end) != 0 {
			return fmt.Errorf("chunk is longer than it says: %w", ErrMalformed)
		}
	}
	line, err := b.reader.line(maxChunkLine)
	if err != nil {
		return err
	}
	if b.left, err = chunkSize(line); err != nil {
		return err
	}
	b.begun = true
	if b.left > 0 {
		return nil
	}
	if b.Trailers, err = b.trailers(); err != nil {
		return err
	}
	b.done = true
	return nil
}

// chunkSize reads the line before a chunk: RFC 9112 section 7.1.
func chunkSize(line []byte) (int64, error) {
	var size int64
	digits := 0
	for ; digits < len(line); digits++ {
		c := line[digits]
		var d byte
		switch {
		case c >= '0' && c <= '9':
			d = c - '0'
		case c >= 'a' && c <= 'f':
			d = c - 'a' + 10
		case c >= 'A' && c <= 'F':
			d = c - 'A' + 10
		default:
			d = 0xff
		}
		if d == 0xff {
			break
		}
		if digits == maxDigits || size > math.MaxInt64>>4 {
			return 0, fmt.Errorf("size of chunk: %w", ErrMalformed)
		}
		size = size<<4 | int64(d)
	}
	if digits == 0 || digits < len(line) && line[digits] != ';' {
		return 0, fmt.Errorf("size of chunk: %w", ErrMalformed)
	}
	for _, c := range line[digits:] {
		if c < ' ' && c != '\t' || c == 0x7f {
			return 0, fmt.Errorf("extension of chunk: %w", ErrMalformed)
		}
	}
	return size, nil
}

// trailers are fields up to an empty line. Those that would change what was read
// before are an error.
func (b *Body) trailers() (out []Field, err error) {
	for size := 0; ; {
		line, err := b.reader.line(maxTrailers)
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			return out, nil
		}
		if size += len(line); size > maxTrailers {
			return nil, fmt.Errorf("trailers: %w", ErrTooLong)
		}
		f, err := ParseField(string(line))
		if err != nil {
			return nil, err
		}
		if beforeBody(f.Name) {
			return nil, fmt.Errorf("trailer %s: %w", f.Name, ErrMalformed)
		}
		out = append(out, f)
	}
}

// ParseField reads one line of a head or of trailers.
func ParseField(line string) (Field, error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || name == "" {
		return Field{}, fmt.Errorf("field without a name: %w", ErrMalformed)
	}
	lower := true
	for i := range len(name) {
		if !isToken[name[i]] {
			return Field{}, fmt.Errorf("name of a field: %w", ErrMalformed)
		}
		lower = lower && (name[i] < 'A' || name[i] > 'Z')
	}
	if !lower {
		name = lowerName(name)
	}
	value = strings.Trim(value, " \t")
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return Field{}, fmt.Errorf("value of field %s: %w", name, ErrMalformed)
		}
	}
	return Field{name, value}, nil
}

// IsToken tells whether text is a token.
func IsToken(text string) bool {
	for i := range len(text) {
		if !isToken[text[i]] {
			return false
		}
	}
	return text != ""
}

// isToken tells what a token is made of: RFC 9110 section 5.6.2.
var isToken = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c < 128 && strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0
	}
	return t
}()

// lowerName spares the names that nearly every message has from being made anew.
func lowerName(name string) string {
	if lower, ok := usual[name]; ok {
		return lower
	}
	return strings.ToLower(name)
}

var usual = func() map[string]string {
	m := map[string]string{}
	for _, name := range []string{
		"Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Cache-Control", "Connection", "Content-Encoding", "Content-Length",
		"Content-Type", "Cookie", "Date", "Etag", "ETag", "Expect", "Expires", "Host", "If-Modified-Since", "If-None-Match", "Keep-Alive",
		"Last-Modified", "Location", "Origin", "Referer", "Server", "Set-Cookie", "Te", "TE", "Traceparent", "Trailer", "Transfer-Encoding",
		"Upgrade", "User-Agent", "Vary", "Via", "X-Forwarded-For", "X-Forwarded-Proto", "X-Request-Id",
	} {
		m[name] = strings.ToLower(name)
	}
	return m
}()
