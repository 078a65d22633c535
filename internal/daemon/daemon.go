// Package daemon is what every long-running process of Ambit has.
//
//	Logger         text or JSON on stderr, its level changeable while it runs
//	Lines          the access log's, many of them at once
//	HeapFloor      fewer collections of garbage, for who keeps little
//	SignalContext  the first signal drains, the second one forces
//	Admin          on loopback: config dump, profiles, log level
//	Metrics        Prometheus, with the process's own figures
//	Readiness      ready once every gate is open, and saying which are not
//
// A server's Run serves until its context ends and returns after its last
// request. What the process does is not this package's job.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/quota"
)

// Version of the binary, set by the linker.
var Version = "dev"

// Logger returns the logger that LOG_FORMAT (text, json) and LOG_LEVEL (debug,
// info, warn, error) ask for, and its level.
func Logger(w io.Writer, getenv func(string) string) (*slog.Logger, *slog.LevelVar, error) {
	level := new(slog.LevelVar)
	if asked := getenv("LOG_LEVEL"); asked != "" {
		if err := level.UnmarshalText([]byte(asked)); err != nil {
			return nil, nil, fmt.Errorf("LOG_LEVEL %q: want debug, info, warn or error", asked)
		}
	}
	logger, err := LoggerAt(level, w, getenv)
	return logger, level, err
}

// LoggerAt returns a logger that LOG_FORMAT asks for, with the level of another.
func LoggerAt(level *slog.LevelVar, w io.Writer, getenv func(string) string) (*slog.Logger, error) {
	options := &slog.HandlerOptions{Level: level}
	switch format := strings.ToLower(getenv("LOG_FORMAT")); format {
	case "", "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("LOG_FORMAT %q: want text or json", format)
	}
}

// SignalContext returns a context that ends at the first SIGTERM or SIGINT,
// when draining begins, and one that ends at the second, when it is cut short.
func SignalContext(parent context.Context) (run, force context.Context, stop func()) {
	run, drain := context.WithCancel(parent)
	force, cut := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	done := make(chan struct{})
	go func() {
		for _, end := range []func(){drain, cut} {
			select {
			case <-signals:
				end()
			case <-done:
				return
			}
		}
	}()
	return run, force, func() {
		signal.Stop(signals)
		close(done)
		drain()
		cut()
	}
}

const (
	// headerTimeout bounds a client that connects and says nothing; idleTimeout
	// one that has nothing more to say.
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	// maxHeaderBytes of a request: those who ask here have a few lines.
	maxHeaderBytes = 16 << 10
	// connectionsPerAddress is for a few who look at the same time. No client takes
	// the server from the kubelet, or from Prometheus.
	connectionsPerAddress = 32
	// closeTimeout bounds the last requests of a server that ends.
	closeTimeout = 2 * time.Second
)

// serve listens and serves until ctx ends.
func serve(ctx context.Context, address string, handler http.Handler) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	listener = quota.NewListener(listener, connectionsPerAddress, nil)
	server := &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", address, err)
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := server.Shutdown(ending); err != nil {
		server.Close()
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", address, err)
	}
	return nil
}
