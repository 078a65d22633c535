package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"sync"
)

// Admin is the server that shows a process's insides. It listens on loopback
// alone: who can reach it can read everything but keys.
type Admin struct {
	// fixed after NewAdmin
	logger *slog.Logger
	level  *slog.LevelVar
	mux    *http.ServeMux

	mu    sync.Mutex // guards dumps
	dumps map[string]func() any
}

// NewAdmin makes the server; level is what /logging changes.
func NewAdmin(logger *slog.Logger, level *slog.LevelVar) *Admin {
	a := &Admin{logger: logger, level: level, mux: http.NewServeMux(), dumps: map[string]func() any{}}
	a.mux.HandleFunc("GET /{$}", a.index)
	a.mux.HandleFunc("GET /config_dump", a.configDump)
	a.mux.HandleFunc("GET /logging", a.showLevel)
	a.mux.HandleFunc("POST /logging", a.setLevel)
	a.mux.HandleFunc("/debug/pprof/", pprof.Index)
	a.mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	a.mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	a.mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return a
}

// Dump adds a section to /config_dump: what it returns is shown as JSON.
func (a *Admin) Dump(name string, section func() any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dumps[name] = section
}

// Handle adds a page.
func (a *Admin) Handle(pattern string, handler http.Handler) { a.mux.Handle(pattern, handler) }

// Run serves until ctx ends. The address must be loopback's.
func (a *Admin) Run(ctx context.Context, address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("admin address %q: %w", address, err)
	}
	ip, err := netip.ParseAddr(host)
	if host != "localhost" && (err != nil || !ip.IsLoopback()) {
		return fmt.Errorf("admin address %q: it shows the process's insides, so it must be of loopback, such as 127.0.0.1:15000", address)
	}
	return serve(ctx, address, a.mux)
}

func (a *Admin) index(w http.ResponseWriter, _ *http.Request) {
	io.WriteString(w, "/config_dump\t?section=NAME for one\n/logging\tPOST ?level=debug\n/debug/pprof/\n")
}

func (a *Admin) configDump(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	sections := maps.Clone(a.dumps)
	a.mu.Unlock()
	if only := r.URL.Query().Get("section"); only != "" {
		section, ok := sections[only]
		if !ok {
			http.Error(w, fmt.Sprintf("section %q: want one of %v", only, slices.Sorted(maps.Keys(sections))), http.StatusNotFound)
			return
		}
		sections = map[string]func() any{only: section}
	}
	dump := make(map[string]any, len(sections))
	for name, section := range sections {
		dump[name] = section()
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(dump); err != nil {
		a.logger.Warn("write config dump", "error", err)
	}
}

func (a *Admin) showLevel(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintln(w, a.level.Level())
}

func (a *Admin) setLevel(w http.ResponseWriter, r *http.Request) {
	asked := r.URL.Query().Get("level")
	if err := a.level.UnmarshalText([]byte(asked)); err != nil {
		http.Error(w, fmt.Sprintf("level %q: want debug, info, warn or error", asked), http.StatusBadRequest)
		return
	}
	a.logger.Info("log level set", "level", a.level.Level().String())
	fmt.Fprintln(w, a.level.Level())
}
