package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// asking is one request to be made.
type asking struct {
	Method string              `json:"method,omitempty"` // GET if empty
	URL    string              `json:"url"`
	Header map[string][]string `json:"header,omitempty"`
	Body   string              `json:"body,omitempty"`
}

// answering is what came of it.
type answering struct {
	// Status is 0 if there was no answer, and Error then says why.
	Status int         `json:"status"`
	Header http.Header `json:"header,omitempty"`
	Body   string      `json:"body,omitempty"`
	Error  string      `json:"error,omitempty"`
	// Took is in milliseconds.
	Took int64 `json:"took"`
}

// requests makes those that it reads from its standard input, JSON values one after the
// other, each on a connection of its own, and prints the answers likewise.
func requests(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("requests", flag.ExitOnError)
	timeout := flags.Duration("timeout", dialTimeout, "of each")
	flags.Parse(args)
	client := &http.Client{
		Timeout: *timeout, Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: (&net.Dialer{}).DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var a asking
		if err := in.Decode(&a); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := out.Encode(a.make(ctx, client)); err != nil {
			return err
		}
	}
}

func (a asking) make(ctx context.Context, client *http.Client) (answer answering) {
	began := time.Now()
	defer func() { answer.Took = time.Since(began).Milliseconds() }()
	q, err := http.NewRequestWithContext(ctx, a.Method, a.URL, strings.NewReader(a.Body))
	if err != nil {
		return answering{Error: err.Error()}
	}
	for name, values := range a.Header {
		q.Header[http.CanonicalHeaderKey(name)] = values
	}
	response, err := client.Do(q)
	if err != nil {
		return answering{Error: errno(err).Error()}
	}
	defer response.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(response.Body); err != nil {
		answer.Error = errno(err).Error()
	}
	answer.Status, answer.Header, answer.Body = response.StatusCode, response.Header, body.String()
	return answer
}

// echoed is a request as a server got it.
type echoed struct {
	Method string      `json:"method"`
	Target string      `json:"target"`
	Host   string      `json:"host"`
	Header http.Header `json:"header"`
	Length int         `json:"length"` // of the body
}

func sayBack(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	json.NewEncoder(w).Encode(echoed{r.Method, r.RequestURI, r.Host, r.Header, len(body)})
}

// slow answers after a time that no route waits for.
func slow(w http.ResponseWriter, r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-time.After(dialTimeout):
	}
}
