package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Who is how a service saw the client of a connection.
type Who struct {
	// Client is the address that the connection came from.
	Client string `json:"client"`
	// Served is the pod@node that answered.
	Served string `json:"served"`
}

func whoami(w http.ResponseWriter, r *http.Request) {
	json.NewEncoder(w).Encode(Who{Client: r.RemoteAddr, Served: self()})
}

func healthz(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintln(w, "ok", r.RemoteAddr)
}

// serveHTTP serves until the context ends, on every family the pod has.
func serveHTTP(ctx context.Context, address string, handler http.Handler) error {
	server := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return server.Close()
	}
}

// zeros is an endless reader of a fixed pattern, cheap to make and to check.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// sendBytes answers with as many bytes as ?n= asks for.
func sendBytes(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
	if err != nil || n < 0 {
		http.Error(w, "n: want a number of bytes", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	io.Copy(w, io.LimitReader(zeros{}, n))
}

// front is the front page: what the catalog has, and what the till says.
func front(ctx context.Context, catalog grpc.ClientConnInterface, till string) (string, error) {
	products, err := askCatalog(ctx, catalog, "products")
	if err != nil {
		return "", fmt.Errorf("ask catalog: %w", err)
	}
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", till)
	if err != nil {
		return "", fmt.Errorf("dial till: %w", err)
	}
	defer conn.Close()
	greeting, err := readLine(conn)
	if err != nil {
		return "", fmt.Errorf("read the till's greeting: %w", err)
	}
	return fmt.Sprintf("Welcome. We sell %s. The till says: %s\n", products, greeting), nil
}

func serveWeb(ctx context.Context) error {
	catalog, err := grpc.NewClient(env("CATALOG", "catalog:9090"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer catalog.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		page, err := front(r.Context(), catalog, env("TILL", "till:7000"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		io.WriteString(w, page)
	})
	mux.HandleFunc("/whoami", whoami)
	mux.HandleFunc("/healthz", healthz)
	mux.HandleFunc("/bytes", sendBytes)
	mux.HandleFunc("/secret", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "card-number=4111-1111-1111-1111\n")
	})
	return serveHTTP(ctx, env("LISTEN", ":8080"), mux)
}

func env(key, fallback string) string {
	if value := os.Getenv(key); value != "" {
		return value
	}
	return fallback
}
