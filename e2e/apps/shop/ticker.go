package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/coder/websocket"
)

// serveTicker sends a price to every WebSocket client twice a second.
func serveTicker(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", healthz)
	mux.HandleFunc("/live", ticks)
	return serveHTTP(ctx, env("LISTEN", ":8090"), mux)
}

func ticks(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	alive := conn.CloseRead(r.Context())
	for i := 0; ; i++ {
		if err := conn.Write(alive, websocket.MessageText, fmt.Appendf(nil, "tick %d for %s", i, r.RemoteAddr)); err != nil {
			return
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-alive.Done():
			return
		}
	}
}
