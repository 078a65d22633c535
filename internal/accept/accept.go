// Package accept lets the tunnels of peers in.
//
//	tunnel.go  TLS, the peer's identity, one request after another
//	limits.go  how much one peer may hold of the process
//	trust.go   tunnels whose peers are no longer trusted
//
// Invariants: no request is heard of a peer that has not proven who it is; a tunnel
// lives only as long as its peer is trusted; what a peer may hold is bounded by its
// address before its identity is known, and by both afterwards.
//
// What a request may ask for is the [Handler]'s to decide.
package accept

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// Config of a Server. All fields are required.
type Config struct {
	// TLS is what tunnels are accepted with, by GetCertificate.
	TLS *tls.Config
	// Trust is asked again about the peers of live tunnels.
	Trust Trust
	// Quotas are the process's.
	Quotas *Quotas
	// Target is whose tunnels these are, for the record; nil while unknown.
	Target func() *workload.Workload
	Conns  *conns.Registry
	Logger *slog.Logger
	// DrainTimeout is how long requests may live on after draining began.
	DrainTimeout time.Duration
}

// Server serves the tunnels to one address.
type Server struct {
	cfg   Config
	peers *peers
}

// New makes a Server. Its tunnels' peers are judged while Judge runs.
func New(cfg Config) *Server { return &Server{cfg: cfg, peers: newPeers(cfg.Trust)} }

// Judge cuts tunnels whose peers are no longer trusted, until ctx ends.
func (s *Server) Judge(ctx context.Context) { s.peers.run(ctx) }
