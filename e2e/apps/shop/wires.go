package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Ports of the wires role: plain TCP behaviours that a faithful tunnel carries.
const (
	portEcho     = ":7001" // every byte comes back
	portChecksum = ":7002" // reads until the client's half-close, answers with count and SHA-256
	portReset    = ":7003" // reads one byte, then resets
	portClock    = ":7004" // sends a line every millisecond
	portLedger   = ":7010" // HTTP: what was asked at :8080, in JSON
)

// serveWires is a server of TCP behaviours, a web server on :8080, and the catalog.
func serveWires(ctx context.Context) error {
	for port, serve := range map[string]func(net.Conn){
		portEcho:     func(c net.Conn) { io.Copy(c, c) },
		portChecksum: checksum,
		portClock:    clock,
		portReset: func(c net.Conn) {
			io.ReadFull(c, make([]byte, 1))
			c.(*net.TCPConn).SetLinger(0)
		},
	} {
		listener, err := net.Listen("tcp", port)
		if err != nil {
			return err
		}
		defer listener.Close()
		go accept(listener, serve)
	}
	catalog, err := listenCatalog(portCatalog)
	if err != nil {
		return err
	}
	defer catalog.Stop()
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", healthz)
	mux.HandleFunc("/whoami", whoami)
	mux.HandleFunc("/bytes", sendBytes)
	mux.HandleFunc("/echo/", sayBack)
	mux.HandleFunc("/slow", slow)
	mux.HandleFunc("/live", ticks)
	mux.HandleFunc("/stream", stream)
	var kept ledger
	mux.HandleFunc("/work", kept.work)
	mux.HandleFunc("/forbidden", kept.forbidden)
	go serveHTTP(ctx, portLedger, http.HandlerFunc(kept.tell))
	return serveHTTP(ctx, env("LISTEN", ":8080"), mux)
}

func clock(c net.Conn) {
	for ticker := time.NewTicker(time.Millisecond); ; {
		if _, err := fmt.Fprintln(c, (<-ticker.C).UnixMicro()); err != nil {
			return
		}
	}
}

func checksum(c net.Conn) {
	hash := sha256.New()
	n, err := io.Copy(hash, c)
	if err != nil {
		return
	}
	fmt.Fprintf(c, "%d %s\n", n, hex.EncodeToString(hash.Sum(nil)))
}
