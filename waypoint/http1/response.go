package http1

import (
	"fmt"
	"strconv"
	"strings"
)

// Response is the head of one.
type Response struct {
	Status int
	Fields []Field
	// Framing and Length of its body; Length is -1 unless it is framed by it.
	Framing Framing
	Length  int64
	// Close: the server closes the connection after it.
	Close bool
}

// ParseResponse reads a head, as Reader.Head returns it, of the response to a request
// by method.
func ParseResponse(head []byte, method string) (*Response, error) {
	text := string(head[:len(head)-2]) // the fields' memory
	line, rest, _ := strings.Cut(text, "\r\n")
	r := &Response{Length: -1, Fields: make([]Field, 0, strings.Count(rest, "\r\n"))}
	minor, err := r.statusLine(line)
	if err != nil {
		return nil, err
	}
	for rest != "" {
		line, rest, _ = strings.Cut(rest, "\r\n")
		f, err := ParseField(line)
		if err != nil {
			return nil, err
		}
		r.Fields = append(r.Fields, f)
	}
	return r, r.frame(method, minor)
}

// statusLine is that of RFC 9112 section 4.
func (r *Response) statusLine(line string) (minor int, err error) {
	if len(line) < len("HTTP/1.1 200") || !strings.HasPrefix(line, "HTTP/1.") || line[8] != ' ' || line[7] != '0' && line[7] != '1' || len(line) > 12 && line[12] != ' ' {
		return 0, fmt.Errorf("status line: %w", ErrMalformed)
	}
	for i := range len(line) {
		if c := line[i]; c < ' ' && c != '\t' || c == 0x7f {
			return 0, fmt.Errorf("reason phrase: %w", ErrMalformed)
		}
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("status: %w", ErrMalformed)
		}
		r.Status = r.Status*10 + int(c-'0')
	}
	if r.Status < 100 {
		return 0, fmt.Errorf("status: %w", ErrMalformed)
	}
	return int(line[7] - '0'), nil
}

// frame finds how the body ends: RFC 9112 section 6.3. What could be read in two ways
// is an error.
func (r *Response) frame(method string, minor int) error {
	var coding string
	codings, lengths := 0, 0
	closes, keeps, announced := false, false, false
	for _, f := range r.Fields {
		switch f.Name {
		case "transfer-encoding":
			codings++
			coding = f.Value
		case "content-length":
			n, err := ParseLength(f.Value)
			if err != nil || lengths > 0 && n != r.Length {
				return fmt.Errorf("content-length: %w", ErrMalformed)
			}
			lengths++
			r.Length = n
		case "connection":
			closes = closes || HasToken(f.Value, "close")
			keeps = keeps || HasToken(f.Value, "keep-alive")
		case "trailer":
			announced = announced || announcesFraming(f.Value)
		}
	}
	r.Close = closes || minor == 0 && !keeps
	switch {
	case codings > 0 && (codings > 1 || !strings.EqualFold(coding, "chunked") || lengths > 0 || minor == 0):
		return fmt.Errorf("transfer-encoding: %w", ErrMalformed)
	case codings > 0 && announced:
		return fmt.Errorf("trailer: %w", ErrMalformed)
	case method == "HEAD" || r.Status < 200 || r.Status == 204 || r.Status == 304:
		r.Framing = None
	case codings > 0:
		r.Framing = Chunked
	case lengths > 0:
		r.Framing = Length
	default:
		r.Framing, r.Close = UntilEnd, true
	}
	return nil
}

// ParseLength reads the value of a content-length: digits, and nothing else.
func ParseLength(text string) (int64, error) {
	if text == "" || len(text) > 18 {
		return 0, ErrMalformed
	}
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return 0, ErrMalformed
		}
	}
	return strconv.ParseInt(text, 10, 64)
}

// HasToken tells whether a list of tokens has one, in lower case.
func HasToken(list, token string) bool {
	for list != "" {
		var one string
		one, list, _ = strings.Cut(list, ",")
		if strings.EqualFold(strings.Trim(one, " \t"), token) {
			return true
		}
	}
	return false
}
