package exchange_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	api "github.com/ambit-mesh/ambit/api/workload"
)

// recorded is what an endpoint got, as net/http reads it, and what of it is none.
type recorded struct {
	mu sync.Mutex
	// Guarded by mu.
	got []string
}

// serve answers each request on its own connection's bytes; what cannot be read is told.
func (r *recorded) serve(c net.Conn) {
	var all bytes.Buffer
	in := bufio.NewReader(io.TeeReader(c, &all))
	for {
		q, err := http.ReadRequest(in)
		if err == io.EOF {
			return
		}
		var text string
		if err == nil {
			text, err = spell(q)
		}
		if err != nil {
			text = fmt.Sprintf("%q: %v", all.String(), err)
		}
		r.mu.Lock()
		r.got = append(r.got, text)
		r.mu.Unlock()
		if err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	}
}

// spell writes a request so that two are equal if they mean the same.
func spell(q *http.Request) (string, error) {
	body, err := io.ReadAll(q.Body)
	out := fmt.Sprintf("%s %s %s %q %s", q.Method, q.Host, q.RequestURI, body, q.TransferEncoding)
	for _, h := range []http.Header{q.Header, q.Trailer} {
		var fields []string
		for name, values := range h {
			fields = append(fields, fmt.Sprint(" ", name, values))
		}
		slices.Sort(fields)
		out += strings.Join(fields, "")
	}
	return out, err
}

// What an endpoint reads, by net/http, is what the client asked for, in the canonical form:
// as many requests, in their order, with the same bodies, of which none is another one.
func TestEndpointsReadWhatWasAsked(t *testing.T) {
	for in, want := range map[string][]string{
		"GET /a/../b?c HTTP/1.1\r\nHost: CART.shop.:80\r\nX-A:  1 \r\nx-a: 2\r\n\r\nGET http://cart/%7Ex HTTP/1.1\r\nHost: cart\r\nConnection: close\r\n\r\nGET /never HTTP/1.1\r\nHost: cart\r\n\r\n": {
			`GET cart.shop /b?c "" [] X-A[1 2]`, `GET cart /~x "" []`,
		},
		"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 38\r\n\r\nGET /admin HTTP/1.1\r\nHost: cart\r\n\r\nxyzPUT /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n": {
			`POST a /1 "GET /admin HTTP/1.1\r\nHost: cart\r\n\r\nxyz" [] Content-Length[38]`, `PUT a /2 "" [] Content-Length[0]`,
		},
		"POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n1;GET=/admin\r\nx\r\n27\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n\r\n0\r\nX-Sum: 1\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n": {
			`POST a /1 "x\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n" [chunked] X-Sum[1]`, `GET a /2 "" []`,
		},
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: x-role, keep-alive, Transfer-Encoding\r\nX-Role: admin\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: gzip, trailers\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n": {
			`GET a / "" []`,
		},
	} {
		t.Run(in[:strings.IndexByte(in, '\r')], func(t *testing.T) {
			r := start(t, api.AppProtocol_HTTP11)
			var got recorded
			r.endpoint.Serve(r.endpoint.ID, got.serve)
			if answers := r.raw(t, in); strings.Count(answers, "HTTP/1.1 200 ") != len(want) {
				t.Errorf("%q: answered %q", in, answers)
			}
			got.mu.Lock()
			if !slices.Equal(got.got, want) {
				t.Errorf("%q:\n got %q\nwant %q", in, got.got, want)
			}
			got.mu.Unlock()
		})
	}
}

// So do endpoints that speak HTTP/2.
func TestEndpointsOfHTTP2ReadWhatWasAsked(t *testing.T) {
	r := start(t, api.AppProtocol_HTTP2)
	var got recorded
	r.serve(func(_ http.ResponseWriter, q *http.Request) {
		text, err := spell(q)
		if err != nil {
			t.Error(err)
		}
		got.mu.Lock()
		got.got = append(got.got, text)
		got.mu.Unlock()
	})
	r.raw(t, "GET /a/../b? HTTP/1.1\r\nHost: CART.shop.:80\r\nX-A:  1 \r\nx-a: 2\r\nConnection: x-b\r\nX-B: 3\r\n\r\n"+
		"POST /%7bx%7D?a=b?c;d&%2F HTTP/1.1\r\nHost: cart:81\r\nContent-Length: 3\r\n\r\nabc"+
		"PUT /c HTTP/1.1\r\nHost: cart\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
	want := []string{
		`GET cart.shop /b? "" [] X-A[1 2]`, `POST cart:81 /%7Bx%7D?a=b?c;d&%2F "abc" [] Content-Length[3]`, `PUT cart /c "abc" [] Te[trailers]`,
	}
	got.mu.Lock()
	defer got.mu.Unlock()
	if !slices.Equal(got.got, want) {
		t.Errorf(" got %q\nwant %q", got.got, want)
	}
}
