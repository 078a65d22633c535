package request_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/ambit-mesh/ambit/waypoint/http1"
	"github.com/ambit-mesh/ambit/waypoint/request"
)

// whole is a request with everything that two readers have to agree about.
type whole struct {
	request.Request
	body     []byte
	trailers []http1.Field
	framing  http1.Framing
	upgrade  string
}

// read reads one request as the waypoint does. Where it is an error the connection ends.
func readOne(r *http1.Reader) (w whole, closes bool, err error) {
	head, err := r.Head()
	if err != nil {
		return w, true, err
	}
	in, err := http1.ParseRequest(head)
	if err != nil {
		return w, true, err
	}
	if w.Request, err = request.Read(in.Method, in.Host, in.Target, http1.EndToEnd(in.Fields)); err != nil {
		return w, true, err
	}
	body := http1.NewBody(r, in.Framing, in.Length)
	if w.body, err = io.ReadAll(body); err != nil {
		return w, true, err
	}
	w.trailers, w.framing, w.upgrade = body.Trailers, in.Framing, in.Upgrade
	return w, in.Close, nil
}

// send writes a request as it goes on to an endpoint.
func (w *whole) send() []byte {
	out := http1.Request{Method: w.Method, Target: w.Target(), Host: w.Authority(), Fields: w.Fields, Upgrade: w.upgrade, Framing: w.framing, Length: int64(len(w.body))}
	b := out.Append(nil)
	if w.framing != http1.Chunked {
		return append(b, w.body...)
	}
	if len(w.body) > 0 {
		b = http1.AppendChunk(b, w.body)
	}
	return http1.AppendLastChunk(b, w.trailers)
}

// theirs is what net/http has read; all of its body.
type theirs struct {
	*http.Request
	body []byte
}

// same tells in what net/http's reading differs; nil for in nothing.
func (w *whole) same(t theirs) error {
	host, port, err := authority(t.Host)
	switch {
	case err != nil:
		return err
	case t.Method != w.Method:
		return fmt.Errorf("method %q", t.Method)
	case host != w.Host || port != w.Port:
		return fmt.Errorf("host %q, which is %q and %d", t.Host, host, port)
	case plain(t.URL.Path) != meaning(w.Path):
		return fmt.Errorf("path %q, which is %q, and %q is %q", t.URL.Path, plain(t.URL.Path), w.Path, meaning(w.Path))
	case query(t.URL) != w.Query:
		return fmt.Errorf("query %q", query(t.URL))
	case !bytes.Equal(t.body, w.body):
		return fmt.Errorf("body %q", t.body)
	case slices.Equal(t.TransferEncoding, []string{"chunked"}) != (w.framing == http1.Chunked):
		return fmt.Errorf("transfer-encoding %q", t.TransferEncoding)
	case w.framing != http1.Chunked && t.ContentLength != int64(len(w.body)):
		return fmt.Errorf("content-length %d", t.ContentLength)
	case !maps.EqualFunc(byName(t.Trailer), grouped(w.trailers), slices.Equal):
		return fmt.Errorf("trailers %q", byName(t.Trailer))
	}
	ours, others := grouped(w.Fields), byName(endToEnd(t.Header))
	for _, name := range []string{"te", "trailer"} { // net/http has them elsewhere, or changes them
		delete(ours, name)
		delete(others, name)
	}
	if slices.Equal(ours["pragma"], others["pragma"]) && len(ours["pragma"]) > 0 && ours["cache-control"] == nil {
		delete(others, "cache-control") // which net/http makes of Pragma
	}
	if !maps.EqualFunc(ours, others, slices.Equal) {
		return fmt.Errorf("fields %q, want %q", others, ours)
	}
	return nil
}

// plain is a path that was decoded, without . and .. and doubled slashes.
func plain(p string) string {
	if p == "*" {
		return p
	}
	clean := path.Clean("/" + p)
	if last := p[strings.LastIndexByte(p, '/')+1:]; clean != "/" && (last == "" || last == "." || last == "..") {
		clean += "/"
	}
	return clean
}

// meaning is what a path in its normal form stands for.
func meaning(p string) string {
	decoded, err := url.PathUnescape(p)
	if err != nil {
		return err.Error()
	}
	return decoded
}

func query(u *url.URL) string {
	if u.RawQuery == "" && !u.ForceQuery {
		return ""
	}
	return "?" + u.RawQuery
}

// authority is a host as net/http has it, in our normal form.
func authority(host string) (string, uint16, error) {
	r, err := request.Read("GET", host, "/", nil)
	return r.Host, r.Port, err
}

func grouped(fields []http1.Field) map[string][]string {
	out := map[string][]string{}
	for _, f := range fields {
		out[f.Name] = append(out[f.Name], f.Value)
	}
	return out
}

func byName(h http.Header) map[string][]string {
	out := map[string][]string{}
	for name, values := range h {
		if lower := strings.ToLower(name); len(values) > 0 {
			out[lower] = append(out[lower], values...)
		}
	}
	return out
}

// endToEnd is a header without what is about the connection.
func endToEnd(h http.Header) http.Header {
	out := h.Clone()
	for _, line := range h.Values("Connection") {
		for name := range strings.SplitSeq(line, ",") {
			out.Del(strings.Trim(name, " \t"))
		}
	}
	for name := range out {
		if http1.OfConnection(strings.ToLower(name)) {
			delete(out, name)
		}
	}
	return out
}

// refused by net/http alone, none of which is about what a request means.
func tolerated(err error) bool {
	// It bounds what is in chunks besides contents; we bound each line.
	return strings.Contains(err.Error(), "chunked encoding contains too much non-data")
}

// readTheirs reads one request by net/http, as its server does.
func readTheirs(r *bufio.Reader) (t theirs, err error) {
	if t.Request, err = http.ReadRequest(r); err != nil {
		return t, err
	}
	if !httpguts.ValidHostHeader(t.Host) {
		return t, errors.New("host")
	}
	for name, values := range t.Header {
		for _, v := range values {
			if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(v) {
				return t, fmt.Errorf("field %q: %q", name, v)
			}
		}
	}
	t.body, err = io.ReadAll(t.Body)
	return t, err
}

// seeds are one connection each.
var seeds = []string{
	"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET /a/../b//c/%61?x=%2F;y HTTP/1.1\r\nHost: A.B.:80\r\nX-Y:  z \r\nx-y: \t\r\nPragma: no-cache\r\n\r\nGET /{}|^`%25 HTTP/1.0\r\nHost: [::1]:81\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: x, close\r\nX: y\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"PUT /a;b HTTP/1.1\r\nHost: a\r\nContent-Length: 05\r\n\r\nhelloGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nTrailer: X-Sum\r\nTE: trailers\r\n\r\n5;a=b\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX-Sum: 7\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n000000000000000001\r\nx\r\n0\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
	"GET http://a/b?c HTTP/1.1\r\nHost: A\r\n\r\nGET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://a?b HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "GET //a/b HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET /a:b HTTP/1.1\r\nHost: a\r\n\r\n", "GET /? HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, Keep-Alive\r\nUpgrade: websocket\r\nKeep-Alive: 5\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, http2-settings\r\nUpgrade: websocket, h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
	"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX: \xff\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n",
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HEAD / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx", "GET / HTTP/1.1\r\nHost: a_b-c.\r\nCookie: a=b\r\nCookie: c=d\r\n\r\n",
}

// FuzzHTTP1: what is read as requests, one after the other, net/http reads as the same;
// and so it does with what goes on.
func FuzzHTTP1(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		src := bytes.NewReader(in)
		ours, others := http1.NewReader(src), bufio.NewReaderSize(bytes.NewReader(in), 128<<10)
		defer ours.Free()
		for range 8 {
			w, closes, err := readOne(ours)
			if err != nil {
				return
			}
			other, err := readTheirs(others)
			if err != nil && tolerated(err) {
				return
			}
			if err != nil {
				t.Fatalf("net/http does not read what we have as %+v: %v", w, err)
			}
			if err := w.same(other); err != nil {
				t.Fatalf("net/http has %v of %+v", err, w)
			}
			if ours.Buffered()+src.Len() != others.Buffered() { // it has buffered all that there is
				t.Fatalf("%d bytes are left, and for net/http %d", ours.Buffered()+src.Len(), others.Buffered())
			}
			goesOn(t, w)
			if closes {
				return
			}
		}
	})
}

// goesOn: what is sent is read as what was read, by both.
func goesOn(t *testing.T, w whole) {
	t.Helper()
	sent := w.send()
	again, _, err := readOne(http1.NewReader(bytes.NewReader(sent)))
	if err != nil || again.Authority() != w.Authority() || again.Target() != w.Target() || !bytes.Equal(again.body, w.body) || again.upgrade != w.upgrade || !slices.Equal(again.trailers, w.trailers) {
		t.Fatalf("%q is read as %+v, %v", sent, again, err)
	}
	others := bufio.NewReaderSize(bytes.NewReader(sent), 128<<10)
	other, err := readTheirs(others)
	if err != nil {
		t.Fatalf("net/http does not read what goes on, %q: %v", sent, err)
	}
	if other.URL.EscapedPath() != w.Path || other.Host != w.Authority() {
		t.Fatalf("net/http has path %q and host %q of %q", other.URL.EscapedPath(), other.Host, sent)
	}
	if err := w.same(other); err != nil {
		t.Fatalf("net/http has %v of what goes on, %q", err, sent)
	}
	if rest, _ := io.ReadAll(others); len(rest) > 0 {
		t.Fatalf("net/http has another request in %q: %q", sent, rest)
	}
}

// conn is a connection on which everything has come already.
type conn struct {
	io.Reader
	closed chan struct{}
}

func (c *conn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *conn) Close() error                     { close(c.closed); return nil }
func (c *conn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *conn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *conn) SetDeadline(time.Time) error      { return nil }
func (c *conn) SetReadDeadline(time.Time) error  { return nil }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// listener has one connection.
type listener struct{ conns chan net.Conn }

func (l listener) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (l listener) Close() error   { return nil }
func (l listener) Addr() net.Addr { return &net.TCPAddr{} }

// The server of net/http has the same requests of a connection, in the same order, as we
// have; what is more it has only where we have ended the connection.
func TestServersReadTheSame(t *testing.T) {
	for _, in := range seeds {
		var got []theirs
		c := &conn{strings.NewReader(in), make(chan struct{})}
		l := listener{make(chan net.Conn, 1)}
		l.conns <- c
		s := &http.Server{DisableGeneralOptionsHandler: true, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err == nil {
				got = append(got, theirs{r, body})
			}
		})}
		go s.Serve(l)
		<-c.closed
		close(l.conns)
		r := http1.NewReader(strings.NewReader(in))
		for n := 0; ; n++ {
			w, closes, err := readOne(r)
			if err != nil {
				break
			}
			if n >= len(got) {
				t.Errorf("%q: the server has no request %d, which is %+v", in, n, w)
				break
			}
			if err := w.same(got[n]); err != nil {
				t.Errorf("%q: the server has %v of request %d", in, err, n)
			}
			if closes {
				if len(got) > n+1 {
					t.Errorf("%q: the server goes on after request %d", in, n)
				}
				break
			}
		}
	}
}
