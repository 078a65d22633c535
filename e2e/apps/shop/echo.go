package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// seen is a request as an endpoint saw it: its answer.
type seen struct {
	Served  string              `json:"served"`
	Proto   string              `json:"proto"`
	Method  string              `json:"method"`
	Host    string              `json:"host"`
	URI     string              `json:"uri"`
	Headers map[string][]string `json:"headers"`
	Body    string              `json:"body"`
}

// reflector answers requests with themselves, and remembers those that bear a key. What else is
// wanted of it is in the query:
//
//	key=K      remember it, under that name
//	fails=N    the trouble is that of the first N with this key; without it, of all
//	delay=1s   trouble: to be late
//	status=503 trouble: to answer so
//	drop=1     trouble: to end the connection in place of an answer
type reflector struct {
	mu    sync.Mutex
	byKey map[string][]seen // guarded by mu
}

func (e *reflector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	query := r.URL.Query()
	s := seen{self(), r.Proto, r.Method, r.Host, r.RequestURI, r.Header, string(body)}
	n := e.remember(query.Get("key"), s)
	if fails, err := strconv.Atoi(query.Get("fails")); err != nil || n <= fails {
		if delay, err := time.ParseDuration(query.Get("delay")); err == nil {
			time.Sleep(delay)
		}
		if query.Get("drop") != "" {
			panic(http.ErrAbortHandler)
		}
		if status, err := strconv.Atoi(query.Get("status")); err == nil {
			w.WriteHeader(status)
			return
		}
	}
	w.Header().Set("X-From-Endpoint", "yes")
	json.NewEncoder(w).Encode(s)
}

// remember a request, and tell how many there were with its key.
func (e *reflector) remember(key string, s seen) int {
	if key == "" {
		return 0
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.byKey[key] = append(e.byKey[key], s)
	return len(e.byKey[key])
}

// tell what was remembered under a key.
func (e *reflector) tell(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	json.NewEncoder(w).Encode(append([]seen{}, e.byKey[r.URL.Query().Get("key")]...))
}

// portGreeting is where the echo role says who it is, unasked.
const portGreeting = ":7000"

// serveEcho answers HTTP of both versions and WebSockets on :8080, any call of gRPC on :9090,
// and greets on :7000.
func serveEcho(ctx context.Context) error {
	greeting, err := net.Listen("tcp", portGreeting)
	if err != nil {
		return err
	}
	defer greeting.Close()
	go accept(greeting, func(c net.Conn) { fmt.Fprintln(c, self()) })
	calls, err := net.Listen("tcp", portCatalog)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(echoCall))
	defer server.Stop()
	go server.Serve(calls)

	e := &reflector{byKey: make(map[string][]seen)}
	go serveHTTP(ctx, portLedger, http.HandlerFunc(e.tell))
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", healthz)
	mux.HandleFunc("/ws", echoSocket)
	mux.Handle("/", e)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	web := &http.Server{Addr: env("LISTEN", ":8080"), Handler: mux, Protocols: &protocols, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { web.Close() })
	if err := web.ListenAndServe(); ctx.Err() == nil {
		return err
	}
	return nil
}

// echoCall answers any call with how it was seen.
func echoCall(_ any, stream grpc.ServerStream) error {
	var question wrapperspb.StringValue
	if err := stream.RecvMsg(&question); err != nil {
		return err
	}
	method, _ := grpc.MethodFromServerStream(stream)
	headers, _ := metadata.FromIncomingContext(stream.Context())
	answer, err := json.Marshal(seen{Served: self(), Proto: "gRPC", Method: method, Headers: headers, Body: question.GetValue()})
	if err != nil {
		return err
	}
	return stream.SendMsg(wrapperspb.String(string(answer)))
}

// echoSocket answers each message with itself.
func echoSocket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	for {
		kind, message, err := c.Read(r.Context())
		if err != nil || c.Write(r.Context(), kind, []byte(self()+" "+string(message))) != nil {
			return
		}
	}
}
