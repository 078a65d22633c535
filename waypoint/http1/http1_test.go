package http1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"reflect"
	"slices"
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
		{"GET", "200 OK\r\nContent-Length: 0\r\nConnection: close\r\nConnection: keep-alive", Length, 0, true},
		{"GET", "200 ", UntilEnd, -1, true},
	} {
		r, err := ParseResponse([]byte("HTTP/1.1 "+test.head+"\r\n\r\n"), test.method)
		if err != nil || r.Framing != test.framing || r.Length != test.length || r.Close != test.close {
			t.Errorf("%s %q: %+v, %v", test.method, test.head, r, err)
		}
	}
}

// RFC 9112 sections 3 and 6.3, RFC 9110 section 7.8.
func TestRequests(t *testing.T) {
	for head, want := range map[string]Request{
		"GET /a?b HTTP/1.1\r\nHOST: a":                   {Method: "GET", Target: "/a?b", Minor: 1},
		"GET / HTTP/1.0\r\nHost:a":                       {Method: "GET", Target: "/", Close: true},
		"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 7": {Method: "PUT", Target: "/", Minor: 1, Framing: Length, Length: 7},
		"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: x\r\nConnection: y, Close": {Method: "PUT", Target: "/", Minor: 1, Close: true},
		"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nTrailer: x":                   {Method: "PUT", Target: "/", Minor: 1, Framing: Chunked, Length: -1},
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket":                  {Method: "GET", Target: "/", Minor: 1, Upgrade: "websocket"},
		// None where nobody would judge what follows, or a body is in the way, or it is not asked for.
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: H2C":                            {Method: "GET", Target: "/", Minor: 1},
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c":                 {Method: "GET", Target: "/", Minor: 1},
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: HTTP/2.0\r\nUpgrade: websocket": {Method: "GET", Target: "/", Minor: 1},
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: TLS/1.3":                        {Method: "GET", Target: "/", Minor: 1},
		"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket":                                             {Method: "GET", Target: "/", Minor: 1},
		"GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket":                      {Method: "GET", Target: "/", Close: true},
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1": {Method: "GET", Target: "/", Minor: 1, Framing: Length, Length: 1},
	} {
		got, err := ParseRequest([]byte(head + "\r\n\r\n"))
		want.Host, want.Fields = "a", got.Fields
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", head, got, err)
		}
	}
	const begin = "PUT / HTTP/1.1\r\nHost: a\r\n"
	for _, head := range []string{
		"", "GET", "GET /", "GET / HTTP/1.2\r\nHost: a", "GET / HTTP/1.1 \r\nHost: a", "GET  / HTTP/1.1\r\nHost: a", "GET /\tHTTP/1.1\r\nHost: a", "\r\nGET / HTTP/1.1\r\nHost: a",
		"GET / HTTP/1.1", begin + "Host: a", begin + "Host: b",
		begin + "Content-Length: 1\r\nContent-Length: 1", begin + "Content-Length: 1, 1", begin + "Content-Length: ", begin + "Content-Length: 0x1", begin + "Content-Length: 1_0", begin + "Content-Length: 9999999999999999999",
		begin + "Content-Length: 1\r\nTransfer-Encoding: chunked", begin + "Content-Length: 0\r\nTransfer-Encoding: chunked", begin + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
		begin + "Transfer-Encoding: chunked, chunked", begin + "Transfer-Encoding: identity", begin + "Transfer-Encoding: \"chunked\"", begin + "Transfer-Encoding:", "PUT / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked",
		begin + "Transfer-Encoding: chunked\r\nTrailer: x, Content-Length",
		begin + "Transfer-Encoding : chunked", begin + "Transfer-Encoding\x00: chunked", begin + " Transfer-Encoding: chunked", begin + "X: a\r\n\tTransfer-Encoding: chunked", begin + "X: a\nTransfer-Encoding: chunked", begin + "X: a\rTransfer-Encoding: chunked",
	} {
		if got, err := ParseRequest([]byte(head + "\r\n\r\n")); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %+v, %v", head, got, err)
		}
	}
}

// What came by another version of HTTP does not end up where it would frame a message.
func TestTrailersThatFrameNothing(t *testing.T) {
	got := string(AppendLastChunk(nil, []Field{{"content-length", "3"}, {"x-sum", "1"}, {"transfer-encoding", "chunked"}, {"host", "b"}}))
	if want := "0\r\nx-sum: 1\r\n\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestMalformedHeads(t *testing.T) {
	for _, head := range []string{
		"HTTP/2.0 200 OK", "HTTP/1.1 20 OK", "HTTP/1.1 2000", "HTTP/1.1 +20 OK", "HTTP/1.1  200", "HTTP/1.1 099 OK", "junk", "",
		"HTTP/1.1 200 OK\r\n: x", "HTTP/1.1 200 OK\r\nA", "HTTP/1.1 200 OK\r\nA b: c", "HTTP/1.1 200 OK\r\n A: b", "HTTP/1.1 200 OK\r\nA: b\nc: d", "HTTP/1.1 200 OK\r\nA: \x00",
		"HTTP/1.1 200 OK\r\nContent-Length: 1, 1", "HTTP/1.1 200 OK\r\nContent-Length: -1", "HTTP/1.1 200 OK\r\nContent-Length: ", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: a, Content-Length",
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

// What is read as responses, one after the other, net/http reads as the same.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: a\r\n\r\n2;x=y\r\nhi\r\n0\r\nA: b\r\n\r\nHTTP/1.1 500 \r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.0 200 OK\r\n\r\nhi", "HTTP/1.0 200 OK\r\nConnection: close\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\nX: \xff\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, method := range []string{"GET", "HEAD"} {
			readBoth(t, method, in)
		}
	})
}

func readBoth(t *testing.T, method string, in []byte) {
	src := bytes.NewReader(in)
	r, others := NewReader(src), bufio.NewReaderSize(bytes.NewReader(in), 128<<10)
	defer r.Free()
	for range 8 {
		head, err := r.Head()
		if err != nil {
			return
		}
		ours, err := ParseResponse(head, method)
		if err != nil || ours.Status == http.StatusSwitchingProtocols {
			return
		}
		b := NewBody(r, ours.Framing, ours.Length)
		body, err := io.ReadAll(b)
		if err != nil {
			return
		}
		theirs, err := http.ReadResponse(others, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("net/http does not read %q: %v", head, err)
		}
		other, err := io.ReadAll(theirs.Body)
		if err != nil && strings.Contains(err.Error(), "too much non-data") {
			return // it bounds what is in chunks besides contents; we bound each line
		}
		if err != nil || !bytes.Equal(other, body) {
			t.Fatalf("body %q, net/http has %q, %v", body, other, err)
		}
		if difference := compare(ours, b.Trailers, theirs); difference != "" {
			t.Fatalf("%q: net/http has %s", head, difference)
		}
		if r.Buffered()+src.Len() != others.Buffered() { // it has buffered all that there is
			t.Fatalf("%d bytes are left, and for net/http %d", r.Buffered()+src.Len(), others.Buffered())
		}
		if ours.Close {
			return
		}
	}
}

// compare tells in what net/http's reading of a head and of trailers differs.
func compare(ours *Response, trailers []Field, theirs *http.Response) string {
	if theirs.StatusCode != ours.Status {
		return fmt.Sprint("status ", theirs.StatusCode)
	}
	if theirs.Close && !ours.Close {
		return "the end of the connection"
	}
	chunked := ours.Framing == Chunked
	if slices.Equal(theirs.TransferEncoding, []string{"chunked"}) != chunked && ours.Framing != None {
		return fmt.Sprint("transfer-encoding ", theirs.TransferEncoding)
	}
	want, got := http.Header{}, theirs.Header
	for _, f := range ours.Fields {
		want.Add(f.Name, f.Value)
	}
	if want.Get("Pragma") == "no-cache" && want["Cache-Control"] == nil {
		got.Del("Cache-Control") // which net/http makes of Pragma
	}
	for _, name := range []string{"Transfer-Encoding", "Content-Length", "Trailer"} { // net/http has them elsewhere
		want.Del(name)
		got.Del(name)
	}
	if !maps.EqualFunc(want, got, slices.Equal) {
		return fmt.Sprintf("fields %q", got)
	}
	after := http.Header{}
	for _, f := range trailers {
		after.Add(f.Name, f.Value)
	}
	for name, values := range theirs.Trailer {
		if values == nil {
			delete(theirs.Trailer, name) // announced, and did not come
		}
	}
	if len(after)+len(theirs.Trailer) > 0 && !maps.EqualFunc(after, theirs.Trailer, slices.Equal) {
		return fmt.Sprintf("trailers %q", theirs.Trailer)
	}
	return ""
}
