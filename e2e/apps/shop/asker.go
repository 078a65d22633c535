package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// question is a line that the asker reads.
type question struct {
	ID int `json:"id"`
	// URL: http, h2c (HTTP/2 without TLS), grpc (host:port/service/method), ws, tcp, or
	// tls, where the body is the name that is asked for.
	URL     string              `json:"url"`
	Method  string              `json:"method"`
	Headers map[string][]string `json:"headers"`
	Body    string              `json:"body"`
}

// reply is a line that it prints.
type reply struct {
	ID int `json:"id"`
	// Status of HTTP, or code of gRPC, whose message is the body unless it is 0.
	Status  int                 `json:"status"`
	Headers map[string][]string `json:"headers"`
	Body    string              `json:"body"`
	Took    time.Duration       `json:"took"`
	// Error where there was no response, or no whole one.
	Error string `json:"error"`
}

const askTimeout = 15 * time.Second

// askAll makes a request of each line that it reads, all at once if they come so, and
// prints what became of it. Redirects are not followed.
func askAll(ctx context.Context, _ []string) error {
	var second http.Protocols
	second.SetUnencryptedHTTP2(true)
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	clients := map[string]*http.Client{
		"http": {CheckRedirect: stay, Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 8}},
		"h2c":  {CheckRedirect: stay, Transport: &http.Transport{DisableCompression: true, Protocols: &second}},
	}
	var mu sync.Mutex
	var asking sync.WaitGroup
	defer asking.Wait()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var q question
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return err
		}
		asking.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askTimeout)
			defer cancel()
			began := time.Now()
			r, err := askOne(ctx, clients, q)
			if err != nil {
				r.Error = errno(err).Error()
			}
			r.ID, r.Took = q.ID, time.Since(began)
			mu.Lock()
			defer mu.Unlock()
			json.NewEncoder(os.Stdout).Encode(r)
		})
	}
	return lines.Err()
}

func askOne(ctx context.Context, clients map[string]*http.Client, q question) (reply, error) {
	scheme, rest, _ := strings.Cut(q.URL, "://")
	switch scheme {
	case "grpc":
		return call(ctx, rest, q)
	case "ws":
		return saySocket(ctx, q)
	case "tcp":
		return hear(ctx, rest)
	case "tls":
		return meet(ctx, rest, q.Body)
	}
	client := clients[scheme]
	if client == nil {
		return reply{}, fmt.Errorf("%s: scheme %q is not known", q.URL, scheme)
	}
	request, err := http.NewRequestWithContext(ctx, q.Method, "http://"+rest, strings.NewReader(q.Body))
	if err != nil {
		return reply{}, err
	}
	for name, values := range q.Headers {
		for _, value := range values {
			request.Header.Add(name, value)
		}
	}
	request.Host = request.Header.Get("Host") // empty: that of the URL
	response, err := client.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return reply{Status: response.StatusCode, Headers: response.Header, Body: string(body)}, err
}

func call(ctx context.Context, url string, q question) (reply, error) {
	address, method, _ := strings.Cut(url, "/")
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	for name, values := range q.Headers {
		for _, value := range values {
			ctx = metadata.AppendToOutgoingContext(ctx, name, value)
		}
	}
	var answer wrapperspb.StringValue
	var headers metadata.MD
	err = conn.Invoke(ctx, "/"+method, wrapperspb.String(q.Body), &answer, grpc.Header(&headers))
	if err != nil {
		return reply{Status: int(status.Code(err)), Headers: headers, Body: status.Convert(err).Message()}, nil
	}
	return reply{Headers: headers, Body: answer.GetValue()}, nil
}

func saySocket(ctx context.Context, q question) (reply, error) {
	conn, _, err := websocket.Dial(ctx, q.URL, nil)
	if err != nil {
		return reply{}, err
	}
	defer conn.CloseNow()
	if err := conn.Write(ctx, websocket.MessageText, []byte(q.Body)); err != nil {
		return reply{}, err
	}
	_, answer, err := conn.Read(ctx)
	return reply{Status: http.StatusSwitchingProtocols, Body: string(answer)}, err
}

// meet asks a server of TLS for a name, and returns whose certificate it shows.
func meet(ctx context.Context, address, name string) (reply, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	secure := tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true}) // who it is, is what is asked
	if err := secure.HandshakeContext(ctx); err != nil {
		return reply{}, err
	}
	return reply{Body: strings.Join(secure.ConnectionState().PeerCertificates[0].DNSNames, " ")}, nil
}

// hear returns the first line of a server that speaks first.
func hear(ctx context.Context, address string) (reply, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return reply{}, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(dialTimeout))
	line, err := readLine(conn)
	return reply{Body: line}, err
}
