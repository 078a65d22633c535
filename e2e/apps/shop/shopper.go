package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Stats is what the shopper tells on :8081/stats.
type Stats struct {
	// LongLived are the connections that were opened once, at the start.
	LongLived map[string]*Line `json:"longLived"`
	// Fresh counts the requests that each had a connection of its own.
	Fresh map[string]*Line `json:"fresh"`
}

// Line is how one kind of connection fares.
type Line struct {
	Since     time.Time `json:"since"`
	Exchanges int       `json:"exchanges"`
	Failures  int       `json:"failures"`
	LastError string    `json:"lastError,omitempty"`
	// Local is our end of the latest connection.
	Local string `json:"local,omitempty"`
}

// shopper uses all services of the shop at once.
type shopper struct {
	// fixed after shop
	web, catalog, till, ticker string
	period                     time.Duration

	mu    sync.Mutex // guards stats
	stats Stats
}

func shop(ctx context.Context) error {
	period, err := time.ParseDuration(env("PERIOD", "100ms"))
	if err != nil {
		return fmt.Errorf("PERIOD: %w", err)
	}
	s := &shopper{
		web: env("WEB", "web:8080"), catalog: env("CATALOG", "catalog:9090"),
		till: env("TILL", "till:7000"), ticker: env("TICKER", "ticker:8090"),
		period: period,
		stats:  Stats{LongLived: map[string]*Line{}, Fresh: map[string]*Line{}},
	}
	for name, hold := range map[string]func(context.Context, string) error{
		"http": s.holdHTTP, "grpc": s.holdGRPC, "tcp": s.holdTill, "websocket": s.holdTicker,
	} {
		go s.long(ctx, name, hold)
	}
	go s.fresh(ctx, "http", s.freshHTTP)
	go s.fresh(ctx, "tcp", s.freshTill)

	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", healthz)
	mux.HandleFunc("/stats", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		json.NewEncoder(w).Encode(s.stats)
	})
	return serveHTTP(ctx, env("LISTEN", ":8081"), mux)
}

// note counts one exchange, or a failure.
func (s *shopper) note(kind map[string]*Line, name, local string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := kind[name]
	if line == nil {
		line = &Line{Since: time.Now()}
		kind[name] = line
	}
	if local != "" {
		line.Local = local
	}
	if err != nil {
		line.Failures++
		line.LastError = time.Now().Format(time.TimeOnly) + " " + err.Error()
		return
	}
	line.Exchanges++
}

// long keeps one connection for good. When it breaks, that is a failure, and
// the next one starts.
func (s *shopper) long(ctx context.Context, name string, hold func(context.Context, string) error) {
	started := false
	for ctx.Err() == nil {
		before := s.exchanges(name)
		err := hold(ctx, name)
		if s.exchanges(name) > before {
			started = true
		}
		if started && ctx.Err() == nil { // services that are not up yet are no failure
			s.note(s.stats.LongLived, name, "", err)
		}
		time.Sleep(s.period)
	}
}

func (s *shopper) exchanges(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if line := s.stats.LongLived[name]; line != nil {
		return line.Exchanges
	}
	return 0
}

func (s *shopper) exchange(name, local string) {
	s.note(s.stats.LongLived, name, local, nil)
	time.Sleep(s.period)
}

// holdHTTP sends request after request on one connection.
func (s *shopper) holdHTTP(ctx context.Context, name string) error {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", s.web)
	if err != nil {
		return err
	}
	defer conn.Close()
	for r := bufio.NewReader(conn); ; {
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "GET /whoami HTTP/1.1\r\nHost: web\r\n\r\n")
		response, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return err
		}
		s.exchange(name, conn.LocalAddr().String())
	}
}

func (s *shopper) holdGRPC(ctx context.Context, name string) error {
	var local string
	dialed := 0
	conn, err := grpc.NewClient("passthrough:///"+s.catalog, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			if dialed++; dialed > 1 {
				return nil, fmt.Errorf("the long-lived gRPC connection ended")
			}
			c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
			if err == nil {
				local = c.LocalAddr().String()
			}
			return c, err
		}))
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := askCatalog(call, conn, "whoami")
		cancel()
		if err != nil {
			return err
		}
		s.exchange(name, local)
	}
}

func (s *shopper) holdTill(ctx context.Context, name string) error {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", s.till)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := readLine(conn); err != nil {
		return err
	}
	for {
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintln(conn, "two quinces")
		if _, err := readLine(conn); err != nil {
			return err
		}
		s.exchange(name, conn.LocalAddr().String())
	}
}

func (s *shopper) holdTicker(ctx context.Context, name string) error {
	conn, _, err := websocket.Dial(ctx, "ws://"+s.ticker+"/live", nil)
	if err != nil {
		return err
	}
	defer conn.CloseNow()
	for {
		read, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, _, err := conn.Read(read)
		cancel()
		if err != nil {
			return err
		}
		s.exchange(name, "")
	}
}

// fresh opens a connection for every request.
func (s *shopper) fresh(ctx context.Context, name string, once func(context.Context) (string, error)) {
	for started := false; ctx.Err() == nil; time.Sleep(s.period) {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		local, err := once(call)
		cancel()
		started = started || err == nil
		if started && ctx.Err() == nil {
			s.note(s.stats.Fresh, name, local, err)
		}
	}
}

func (s *shopper) freshHTTP(ctx context.Context) (string, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.web+"/", nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return "", err
}

func (s *shopper) freshTill(ctx context.Context) (string, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.till)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = readLine(conn)
	return conn.LocalAddr().String(), err
}
