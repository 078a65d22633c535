package http1

import (
	"net/http"
	"strconv"
)

// AppendStatusLine begins the head of a response.
func AppendStatusLine(b []byte, status int) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	return append(b, "\r\n"...)
}

// AppendField adds a field.
func AppendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// AppendFraming adds the field that says how the body ends, if one has to.
func AppendFraming(b []byte, framing Framing, length int64) []byte {
	switch framing {
	case Length:
		b = append(b, "content-length: "...)
		b = strconv.AppendInt(b, length, 10)
		return append(b, "\r\n"...)
	case Chunked:
		return append(b, "transfer-encoding: chunked\r\n"...)
	}
	return b
}

// AppendChunk adds a chunk, which must not be empty.
func AppendChunk(b, chunk []byte) []byte {
	b = strconv.AppendInt(b, int64(len(chunk)), 16)
	b = append(b, "\r\n"...)
	b = append(b, chunk...)
	return append(b, "\r\n"...)
}

// AppendLastChunk ends a body in chunks. Of trailers that came by another version of HTTP
// it leaves out those that cannot come after a body.
func AppendLastChunk(b []byte, trailers []Field) []byte {
	b = append(b, "0\r\n"...)
	for _, f := range trailers {
		if beforeBody(f.Name) {
			continue
		}
		b = AppendField(b, f.Name, f.Value)
	}
	return append(b, "\r\n"...)
}
