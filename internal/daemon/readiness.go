package daemon

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Readiness is the server that the kubelet asks. It is ready once every gate
// has been opened.
type Readiness struct {
	mu     sync.Mutex // guards closed
	closed map[string]bool
}

// NewReadiness makes it, without any gate.
func NewReadiness() *Readiness { return &Readiness{closed: map[string]bool{}} }

// Gate adds a closed gate, and returns what opens it. The name is shown as long
// as it is closed.
func (r *Readiness) Gate(name string) (open func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed[name] = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.closed, name)
	}
}

// Missing returns the closed gates, sorted.
func (r *Readiness) Missing() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.closed))
}

// Run serves /healthz/ready until ctx ends.
func (r *Readiness) Run(ctx context.Context, address string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		if missing := r.Missing(); len(missing) > 0 {
			http.Error(w, "not ready, waiting for: "+strings.Join(missing, ", "), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return serve(ctx, address, mux)
}
