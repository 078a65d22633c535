package plan

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestAsManyRoutesAsAreAskedFor(t *testing.T) {
	for _, n := range []int{Routes, ManyRoutes} {
		if got := len(List(n)); got != n {
			t.Errorf("%d routes, want %d", got, n)
		}
	}
}

// Every request is answered by the backends of the first route that it matches.
func TestRequestsNameTheBackendsOfTheirRoutes(t *testing.T) {
	for _, r := range Requests() {
		q, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(r.Text)))
		if err != nil {
			t.Fatal(err)
		}
		if q.Host != Host {
			t.Errorf("host %q", q.Host)
		}
		var want string
		for _, route := range List(Routes) {
			if !strings.HasPrefix(q.URL.Path+"/", strings.TrimSuffix(route.Prefix, "/")+"/") || route.Header != "" && q.Header.Get(route.Header) != route.Value {
				continue
			}
			for _, b := range route.Backends {
				want += b.Name
			}
			break
		}
		if r.Backends != want {
			t.Errorf("%s: backends %q, want %q", q.URL.Path, r.Backends, want)
		}
	}
}

func TestResponseIsWhole(t *testing.T) {
	r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(Response("a"))), nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(r.Body); len(body) != BodySize || err != nil || r.Header.Get(NameField) != "a" {
		t.Errorf("%d bytes from %q, %v", len(body), r.Header.Get(NameField), err)
	}
}
