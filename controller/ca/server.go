package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	caapi "github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/internal/quota"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// impersonated is the key of the request's metadata that names the identity
// asked for, when it is not the caller's own.
const impersonated = "ImpersonatedIdentity"

// ServerConfig is what a [Server] needs.
type ServerConfig struct {
	Authority     *Authority
	Authenticator *Authenticator
	Pods          *Pods
	// SystemNamespace is where ztunnel's account is.
	SystemNamespace string
	Logger          *slog.Logger
	Registerer      prometheus.Registerer
}

// Server answers certificate signing requests.
type Server struct {
	caapi.UnimplementedIstioCertificateServiceServer
	cfg      ServerConfig
	requests *prometheus.CounterVec
	reading  *quota.Door[reader]
}

// Results of a request, as the metric's label has them.
const (
	resultIssued          = "issued"
	resultUnauthenticated = "unauthenticated"
	resultDenied          = "denied"
	resultBadRequest      = "bad_request"
	resultFailed          = "failed"
	resultBusy            = "busy"
)

// NewServer returns the certificate service.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{cfg: cfg, reading: newReading(), requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ambit_ca_requests_total", Help: "Certificate signing requests, by result.",
	}, []string{"result"})}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(s.requests)
	}
	return s
}

// errDenied is all that a caller who is refused gets to know.
var errDenied = status.Error(codes.PermissionDenied, "not entitled to this identity")

// CreateCertificate signs a certificate for the caller's identity, or for the
// one that it names if it may have that. Errors: Unauthenticated,
// PermissionDenied (also for a request that names others than it may),
// InvalidArgument, Unavailable.
func (s *Server) CreateCertificate(ctx context.Context, request *caapi.IstioCertificateRequest) (*caapi.IstioCertificateResponse, error) {
	peer, err := s.cfg.Authenticator.Authenticate(ctx)
	if err != nil {
		s.requests.WithLabelValues(resultUnauthenticated).Inc()
		return nil, err
	}
	return s.create(ctx, peer, request)
}

// create answers the request of a caller who is known.
func (s *Server) create(ctx context.Context, peer Peer, request *caapi.IstioCertificateRequest) (*caapi.IstioCertificateResponse, error) {
	logger := s.cfg.Logger.With("peer", peer)
	identity, err := s.requested(peer, request)
	if err == nil {
		err = s.authorize(ctx, peer, identity)
	}
	if err != nil {
		s.requests.WithLabelValues(resultDenied).Inc()
		logger.Warn("refused certificate", "identity", identity.String(), "reason", err)
		return nil, errDenied
	}
	chain, leaf, err := s.cfg.Authority.Issue(identity, request.GetCsr(), lifetime(request.GetValidityDuration()))
	if err != nil {
		return nil, s.refuse(logger.With("identity", identity.String()), err)
	}
	s.requests.WithLabelValues(resultIssued).Inc()
	logger.Info("issued certificate", "identity", identity.String(), "serial", leaf.SerialNumber.Text(16), "not_after", leaf.NotAfter)
	return &caapi.IstioCertificateResponse{CertChain: chain}, nil
}

// requested returns the identity that a request is about.
func (s *Server) requested(peer Peer, request *caapi.IstioCertificateRequest) (spiffe.ID, error) {
	value, present := request.GetMetadata().GetFields()[impersonated]
	if !present {
		return peer.Identity(s.cfg.Authority.TrustDomain()), nil
	}
	identity, err := spiffe.Parse(value.GetStringValue())
	if err != nil {
		return spiffe.ID{}, fmt.Errorf("read %s: %w", impersonated, err)
	}
	return identity, nil
}

// refuse logs why a request was not signed and returns what the caller gets.
func (s *Server) refuse(logger *slog.Logger, err error) error {
	var bad *requestError
	switch {
	case errors.Is(err, errForeignName):
		s.requests.WithLabelValues(resultDenied).Inc()
		logger.Warn("refused certificate", "reason", err)
		return errDenied
	case errors.As(err, &bad):
		s.requests.WithLabelValues(resultBadRequest).Inc()
		logger.Warn("refused certificate", "reason", err)
		return status.Error(codes.InvalidArgument, bad.Error())
	default:
		s.requests.WithLabelValues(resultFailed).Inc()
		logger.Error("sign certificate", "error", err)
		return status.Error(codes.Unavailable, "certificates cannot be signed now")
	}
}

// lifetime reads a number of seconds without overflowing.
func lifetime(seconds int64) time.Duration {
	if seconds <= 0 || seconds > int64(maxLifetime/time.Second) {
		return maxLifetime
	}
	return time.Duration(seconds) * time.Second
}
