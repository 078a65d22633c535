//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
)

// request is one that a client in a pod makes.
type request struct {
	Method string              `json:"method,omitempty"`
	URL    string              `json:"url"`
	Header map[string][]string `json:"header,omitempty"`
	Body   string              `json:"body,omitempty"`
}

// answer is what came of it: no status, and an error, if there was none.
type answer struct {
	Status int
	Header http.Header
	Body   string
	Error  string
	Took   int64 // ms
}

// echoed is a request as the server got it, at /echo/.
func (a answer) echoed() (e struct {
	Method, Target, Host string
	Header               http.Header
	Length               int
}, err error) {
	if a.Status != http.StatusOK {
		return e, fmt.Errorf("answered %d %s %s", a.Status, a.Body, a.Error)
	}
	return e, json.Unmarshal([]byte(a.Body), &e)
}

// ask has a pod make requests, one after the other.
func (p *place) ask(pod string, all ...request) []answer {
	p.Helper()
	answers, err := p.tryAsk(pod, all...)
	if err != nil {
		p.Fatal(err)
	}
	return answers
}

func (p *place) tryAsk(pod string, all ...request) ([]answer, error) {
	var in, out bytes.Buffer
	encoder := json.NewEncoder(&in)
	for _, q := range all {
		if err := encoder.Encode(q); err != nil {
			return nil, err
		}
	}
	cmd := p.bed.Command(p.Context(), "kubectl", "-n", p.name, "exec", "-i", pod, "--", "/usr/local/bin/shop", "tool", "requests")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("requests by %s: %w", pod, err)
	}
	answers := make([]answer, len(all))
	decoder := json.NewDecoder(&out)
	for i := range answers {
		if err := decoder.Decode(&answers[i]); err != nil {
			return nil, fmt.Errorf("requests by %s: the answer to %s: %w", pod, all[i].URL, err)
		}
	}
	return answers, nil
}

// get is a request with headers: name, value, name, value.
func get(url string, header ...string) request {
	q := request{URL: url, Header: map[string][]string{}}
	for i := 0; i+1 < len(header); i += 2 {
		q.Header[header[i]] = append(q.Header[header[i]], header[i+1])
	}
	return q
}

// answered waits until a request is answered with a status.
func (p *place) answered(what, pod string, status int, q request) (a answer) {
	p.Helper()
	p.eventually(what, func() error {
		answers, err := p.tryAsk(pod, q)
		if err != nil {
			return err
		}
		if a = answers[0]; a.Status != status {
			return fmt.Errorf("%s was answered with %d, want %d: %s %s", q.URL, a.Status, status, a.Body, a.Error)
		}
		return nil
	})
	return a
}

// condition of an object, as REASON: MESSAGE behind its status.
func (p *place) condition(object, kind string) string {
	p.Helper()
	return strings.TrimSpace(p.in("get", object, "-o", fmt.Sprintf(`jsonpath={range .status.conditions[?(@.type=="%s")]}{.status} {.reason}: {.message}{end}`, kind)))
}

// inForce waits until objects are.
func (p *place) inForce(objects ...string) {
	p.Helper()
	for _, object := range objects {
		p.in("wait", "--for=condition=InForce", object, "--timeout=60s")
	}
}
