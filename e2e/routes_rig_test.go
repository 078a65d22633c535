//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// question is a request, as the shop's asker reads it.
type question struct {
	ID      int                 `json:"id"`
	URL     string              `json:"url"`
	Method  string              `json:"method"`
	Headers map[string][]string `json:"headers,omitempty"`
	Body    string              `json:"body,omitempty"`
}

// getting asks for a URL with fields such as "X-A: b".
func getting(url string, fields ...string) question { return ask("GET", url, fields...) }

func ask(method, url string, fields ...string) question {
	q := question{Method: method, URL: url, Headers: map[string][]string{}}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		q.Headers[name] = append(q.Headers[name], value)
	}
	return q
}

func (q question) String() string {
	return strings.TrimSpace(fmt.Sprint(q.Method, " ", q.URL, " ", strings.TrimPrefix(fmt.Sprint(q.Headers), "map")))
}

// reply is what became of it.
type reply struct {
	ID      int
	Status  int
	Headers map[string][]string
	Body    string
	Took    time.Duration
	Error   string
}

// seen is a request as the endpoint saw it.
type seen struct {
	Served, Proto, Method, Host, URI, Body string
	Headers                                map[string][]string
}

func (r reply) seen() (s seen) {
	json.Unmarshal([]byte(r.Body), &s)
	return s
}

// asker is a client in a pod, that many ask by at once.
type asker struct {
	t  *testing.T
	in io.WriteCloser

	mu sync.Mutex
	// Guarded by mu.
	next    int
	waiting map[int]chan reply
	over    error
}

// asker starts one in a pod. It lives as long as the test.
func (p *place) asker(pod string) *asker {
	p.Helper()
	a := &asker{t: p.T, waiting: make(map[int]chan reply)}
	cmd := p.bed.Command(p.Context(), "kubectl", "-n", p.name, "exec", "-i", pod, "--", "/usr/local/bin/shop", "tool", "ask-all")
	cmd.Stderr = os.Stderr
	var err error
	if a.in, err = cmd.StdinPipe(); err != nil {
		p.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.Fatal(err)
	}
	go func() {
		lines := bufio.NewReader(out)
		for {
			var r reply
			line, err := lines.ReadBytes('\n')
			if err == nil {
				err = json.Unmarshal(line, &r)
			}
			a.mu.Lock()
			if err != nil {
				a.over = fmt.Errorf("the asker is over: %w", err)
				for _, waits := range a.waiting {
					close(waits)
				}
				a.waiting = nil
				a.mu.Unlock()
				cmd.Wait()
				return
			}
			if waits := a.waiting[r.ID]; waits != nil {
				delete(a.waiting, r.ID)
				waits <- r
			}
			a.mu.Unlock()
		}
	}()
	p.Cleanup(func() { a.in.Close() })
	return a
}

func (a *asker) ask(q question) (reply, error) {
	answer := make(chan reply, 1)
	a.mu.Lock()
	if a.over != nil {
		a.mu.Unlock()
		return reply{}, a.over
	}
	a.next++
	q.ID = a.next
	a.waiting[q.ID] = answer
	text, err := json.Marshal(q)
	if err == nil {
		_, err = a.in.Write(append(text, '\n'))
	}
	a.mu.Unlock()
	if err != nil {
		return reply{}, err
	}
	select {
	case r, ok := <-answer:
		if !ok {
			return r, a.over
		}
		return r, nil
	case <-time.After(30 * time.Second):
		return reply{}, fmt.Errorf("%s: the asker says nothing", q)
	}
}

// many asks a number of times, some at once, and returns the replies.
func (a *asker) many(n int, q question) []reply { return a.burst(n, 16, q) }

// burst is many with so many at once.
func (a *asker) burst(n, atOnce int, q question) []reply {
	replies := make([]reply, n)
	turn := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i := range replies {
		all.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			r, err := a.ask(q)
			if err != nil {
				r.Error = err.Error()
			}
			replies[i] = r
		})
	}
	all.Wait()
	return replies
}

// expectation is what a reply has to be.
type expectation func(reply) error

// step is a request and what it has to come to.
type step struct {
	asked question
	want  []expectation
}

func on(q question, want ...expectation) step { return step{q, want} }

// settled bounds how long a route may take to be in force at every pod of its waypoint.
const settled = 30 * time.Second

// steps fails the test unless each comes to what it has to. Routes take a moment to be in
// force, and so each may be asked again: what is wrong stays so.
func (a *asker) steps(t *testing.T, all ...step) {
	t.Helper()
	for _, s := range all {
		var err error
		for began := time.Now(); time.Since(began) < settled; time.Sleep(100 * time.Millisecond) {
			var r reply
			if r, err = a.ask(s.asked); err == nil {
				if err = judge(r, s.want); err == nil {
					break
				}
			}
		}
		if err != nil {
			t.Errorf("%s: %v", s.asked, err)
		}
	}
}

func judge(r reply, want []expectation) error {
	for _, w := range want {
		if err := w(r); err != nil {
			return fmt.Errorf("%w, in %+v", err, r)
		}
	}
	return nil
}

func that(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// by: a pod served it.
func by(pod string) expectation {
	return func(r reply) error {
		return that(r.Error == "" && strings.HasPrefix(r.seen().Served, pod+"@"), "not served by %s", pod)
	}
}

func status(want int) expectation {
	return func(r reply) error { return that(r.Error == "" && r.Status == want, "not %d", want) }
}

// bears: the response has a field with these values, and no others; none for no such field.
func bears(name string, values ...string) expectation {
	return func(r reply) error {
		return that(r.Error == "" && slices.Equal(r.Headers[name], values), "%s of the response is not %q", name, values)
	}
}

// got: the endpoint got a field with these values, and no others; none for no such field.
func got(name string, values ...string) expectation {
	return func(r reply) error {
		s := r.seen()
		return that(s.Served != "" && slices.Equal(s.Headers[name], values), "%s of the request is not %q", name, values)
	}
}

// asked: the endpoint was asked for this host and path.
func asked(host, uri string) expectation {
	return func(r reply) error {
		s := r.seen()
		return that(s.Host == host && s.URI == uri, "the endpoint was not asked for %s%s", host, uri)
	}
}

// over: the endpoint was asked by this version of the protocol.
func over(proto string) expectation {
	return func(r reply) error { return that(r.seen().Proto == proto, "not over %s", proto) }
}

// redirects to a place, by a status.
func redirects(code int, to string) expectation {
	return func(r reply) error { return judge(r, []expectation{status(code), bears("Location", to)}) }
}

// within: it took no longer.
func within(d time.Duration) expectation {
	return func(r reply) error { return that(r.Error == "" && r.Took < d, "it took longer than %s", d) }
}

// withoutSelector is a Service whose endpoints the test says.
func withoutSelector(name string) string {
	return strings.Replace(service(name, "", anyPort), "  selector: {app: }\n", "", 1)
}

// endpoint of a Service without a selector: a port of a pod.
func (p *place) endpoint(service, pod string, port int) string {
	p.Helper()
	return fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[1]s-%[2]s, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{name: web, port: %[3]d}]
endpoints: [{addresses: ["%[4]s"], conditions: {ready: true}, targetRef: {kind: Pod, namespace: %[5]s, name: %[2]s}}]
`, service, pod, port, p.ip(pod), p.name)
}

// routeStatus is what a controller says of a route at one parent.
type routeStatus struct {
	ControllerName string
	ParentRef      struct{ Name, Namespace, SectionName string }
	Conditions     []struct {
		Type, Status, Reason, Message string
		ObservedGeneration            int64
	}
}

func (p *place) routeStatus(kind, name string) (generation int64, parents []routeStatus, err error) {
	var r struct {
		Metadata struct{ Generation int64 }
		Status   struct{ Parents []routeStatus }
	}
	out, err := p.bed.Kubectl(p.Context(), "-n", p.name, "get", kind+".gateway.networking.k8s.io", name, "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &r)
	}
	return r.Metadata.Generation, r.Status.Parents, err
}

const ourController = "ambit.mesh/waypoint"

// says waits until our status of a route at a parent has conditions such as
// "Accepted=False NoWaypoint", of its last generation, and no others of these types.
func (p *place) says(kind, name, parent string, conditions ...string) {
	p.Helper()
	p.within(settled, kind+" "+name+" at "+parent, func() error {
		generation, parents, err := p.routeStatus(kind, name)
		if err != nil {
			return err
		}
		for _, at := range parents {
			if at.ControllerName != ourController || at.ParentRef.Name != parent {
				continue
			}
			var said []string
			for _, c := range at.Conditions {
				if c.ObservedGeneration != generation {
					return fmt.Errorf("%s is of generation %d, not %d", c.Type, c.ObservedGeneration, generation)
				}
				said = append(said, c.Type+"="+c.Status+" "+c.Reason)
			}
			slices.Sort(said)
			slices.Sort(conditions)
			return that(slices.Equal(said, conditions), "it says %q, want %q: %+v", said, conditions, at.Conditions)
		}
		return fmt.Errorf("nothing is said of it: %+v", parents)
	})
}
