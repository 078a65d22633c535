//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// sessionOf is what a reply brings of a session: a field that the client goes on with, and of a
// cookie what it says of itself besides. Both are empty if it brings nothing.
func sessionOf(r reply, header string) (field, says string) {
	if values := r.Headers[header]; header != "" && len(values) == 1 {
		return header + ": " + values[0], ""
	}
	for _, text := range r.Headers["Set-Cookie"] {
		c, err := http.ParseSetCookie(text)
		if err != nil {
			return "", err.Error()
		}
		name := c.Name
		if strings.HasPrefix(name, "ambit-session-") {
			name = "ours" // one of the rule's own
		}
		return "Cookie: " + c.Name + "=" + c.Value, fmt.Sprintf("%s for %s, %d s", name, c.Path, c.MaxAge)
	}
	return "", ""
}

func checkSessions(t *testing.T, r *routing) {
	const n = 40
	for _, c := range []struct {
		path, header, says string
		ends               bool
	}{
		{"/cookie", "", "basket for /cookie, 0 s", false}, {"/permanent", "", "basket for /, 3 s", true},
		{"/header", "X-Basket", "", true}, {"/split", "", "ours for /, 0 s", false},
	} {
		u := url("sessions", c.path)
		// Without a session anybody serves, and begins one.
		r.client.steps(t, on(getting(u), status(200), func(a reply) error {
			field, _ := sessionOf(a, c.header)
			return that(field != "", "it begins no session")
		}))
		begun := map[string]string{} // by pod
		for _, a := range r.client.many(n, getting(u)) {
			pod, _, _ := strings.Cut(a.seen().Served, "@")
			field, says := sessionOf(a, c.header)
			if a.Status != 200 || field == "" || says != c.says {
				t.Fatalf("%s: it begins %q, %q, want %q: %+v", c.path, field, says, c.says, a)
			}
			begun[pod] = field
		}
		if len(begun) != 2 || begun["one"] == "" || begun["two"] == "" {
			t.Fatalf("%s: sessions are begun at %v, want one and two", c.path, begun)
		}
		for pod := range begun {
			field := fresh(t, r, u, c.header, pod)
			began := time.Now()
			for _, a := range r.client.many(n, getting(u, field)) {
				if again, _ := sessionOf(a, c.header); by(pod)(a) != nil || again != "" {
					if c.ends && time.Since(began) > time.Second {
						break // the machine is too busy for so short a session
					}
					t.Fatalf("%s: a session of %s begins anew, by %q, or is elsewhere: %+v", c.path, pod, again, a)
				}
			}
			if !c.ends {
				continue
			}
			time.Sleep(time.Until(began.Add(4 * time.Second)))
			a, err := r.client.ask(getting(u, field))
			if again, _ := sessionOf(a, c.header); err != nil || a.Status != 200 || again == "" || again == field {
				t.Errorf("%s: a session that is over goes on by %q: %v %+v", c.path, again, err, a)
			}
		}
		// What nobody gave out is no session.
		r.client.steps(t, on(getting(u, "Cookie: basket=forged", "X-Basket: forged"), status(200), func(a reply) error {
			field, _ := sessionOf(a, c.header)
			return that(field != "", "it is taken for a session")
		}))
	}
}

// fresh is a session that begins now, at a pod.
func fresh(t *testing.T, r *routing, url, header, pod string) (field string) {
	t.Helper()
	for range 20 {
		for _, a := range r.client.many(16, getting(url)) { // at once: one alone goes to who has the least to do
			if by(pod)(a) == nil {
				field, _ = sessionOf(a, header)
				return field
			}
		}
	}
	t.Fatalf("%s never serves %s", pod, url)
	return ""
}
