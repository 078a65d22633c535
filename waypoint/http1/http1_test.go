package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// RFC 9112 section 6.3, in its order.
func TestFramingOfResponses(t *testing.T) {
	for _, test := range []struct {
		method, head string
		framing      Framing
		length       int64
		close        bool
	}{
		{"HEAD", "200 OK\r\nContent-Length: 7", None, 7, false},
		{"GET", "204 No Content", None, -1, false},
		{"GET", "304 Not Modified\r\nContent-Length: 7", None, 7, false},
		{"GET", "200 OK\r\nTransfer-Encoding: Chunked", Chunked, -1, false},
		{"GET", "200 OK\r\nContent-Length: 7\r\nContent-Length: 7", Length, 7, false},
		{"GET", "200 OK\r\nContent-Length: 0\r\nConnection: x, Close", Length, 0, true},
		{"GET", "200 ", UntilEnd, -1, true},
	} {
		r, err := ParseResponse([]byte("HTTP/1.1 "+test.head+"\r\n\r\n"), test.method)
		if err != nil || r.Framing != test.framing || r.Length != test.length || r.Close != test.close {
			t.Errorf("%s %q: %+v, %v", test.method, test.head, r, err)
		}
	}
}

func TestMalformedHeads(t *testing.T) {
	for _, head := range []string{
		"HTTP/2.0 200 OK", "HTTP/1.1 20 OK", "HTTP/1.1 2000", "HTTP/1.1 +20 OK", "HTTP/1.1  200", "HTTP/1.1 099 OK", "junk", "",
		"HTTP/1.1 200 OK\r\n: x", "HTTP/1.1 200 OK\r\nA", "HTTP/1.1 200 OK\r\nA b: c", "HTTP/1.1 200 OK\r\n A: b", "HTTP/1.1 200 OK\r\nA: b\nc: d", "HTTP/1.1 200 OK\r\nA: \x00",
		"HTTP/1.1 200 OK\r\nContent-Length: 1, 1", "HTTP/1.1 200 OK\r\nContent-Length: -1", "HTTP/1.1 200 OK\r\nContent-Length: ", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1",
	} {
		if r, err := ParseResponse([]byte(head+"\r\n\r\n"), "GET"); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %+v, %v", head, r, err)
		}
	}
}

// However the bytes come, the same is read, and nothing beyond.
func TestBodies(t *testing.T) {
	const next = "HTTP/1.1 200 OK\r\n\r\n"
	for _, test := range []struct {
		framing          Framing
		length           int64
		in, want, extras string
	}{
		{Length, 5, "hello", "hello", ""},
		{Chunked, 0, "5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX-Sum: 11\r\n\r\n", "hello world", "x-sum=11"},
		{Chunked, 0, "0\r\n\r\n", "", ""},
		{None, 0, "", "", ""},
	} {
		for _, way := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.HalfReader} {
			r := NewReader(way(strings.NewReader(test.in + next)))
			b := NewBody(r, test.framing, test.length)
			got, err := io.ReadAll(b)
			extras := ""
			for _, f := range b.Trailers {
				extras += f.Name + "=" + f.Value
			}
			if err != nil || string(got) != test.want || extras != test.extras || !b.Done() {
				t.Errorf("%q: %q, %q, %v", test.in, got, extras, err)
			}
			if head, err := r.Head(); string(head) != next {
				t.Errorf("%q: followed by %q, %v", test.in, head, err)
			}
		}
	}
}

func TestBodiesThatAreCutShort(t *testing.T) {
	for _, test := range []struct {
		framing Framing
		length  int64
		in      string
	}{{Length, 6, "hello"}, {Chunked, 0, "5\r\nhel"}, {Chunked, 0, "5\r\nhello"}, {Chunked, 0, "5\r\nhello\r\n"}, {Chunked, 0, "0\r\n"}, {Chunked, 0, "0\r\nA: b\r\n"}} {
		if got, err := io.ReadAll(NewBody(NewReader(strings.NewReader(test.in)), test.framing, test.length)); err != io.ErrUnexpectedEOF {
			t.Errorf("%q: %q, %v", test.in, got, err)
		}
	}
}

func TestHeadsAreBounded(t *testing.T) {
	r := NewReader(io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\n"), strings.NewReader(strings.Repeat("a: b\r\n", MaxHead))))
	if _, err := r.Head(); !errors.Is(err, ErrTooLong) {
		t.Errorf("%v", err)
	}
	endless := NewBody(NewReader(strings.NewReader("0\r\n"+strings.Repeat("a: b\r\n", maxTrailers))), Chunked, 0)
	if _, err := io.ReadAll(endless); !errors.Is(err, ErrTooLong) {
		t.Errorf("%v", err)
	}
}

// What is read as a response, net/http reads as the same, or not at all.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\nhi"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in))
		head, err := r.Head()
		if err != nil {
			return
		}
		ours, err := ParseResponse(head, "GET")
		if err != nil {
			return
		}
		body, err := io.ReadAll(NewBody(r, ours.Framing, ours.Length))
		if err != nil {
			return
		}
		theirs, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(in)), &http.Request{Method: "GET"})
		if err != nil {
			return
		}
		if theirs.StatusCode != ours.Status {
			t.Fatalf("status %d, net/http has %d", ours.Status, theirs.StatusCode)
		}
		if other, err := io.ReadAll(theirs.Body); err == nil && ours.Status >= 200 && !bytes.Equal(other, body) {
			t.Fatalf("body %q, net/http has %q", body, other)
		}
	})
}
