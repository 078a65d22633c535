package ca

import (
	"context"
	"errors"
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
	audit    *audit
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
	s := &Server{cfg: cfg, audit: newAudit(cfg.Logger, cfg.Registerer), reading: newReading(), requests: prometheus.NewCounterVec(prometheus.CounterOpts{
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
		s.unauthenticated(err)
		return nil, err
	}
	return s.create(ctx, peer, request)
}

// create answers the request of a caller who is known.
func (s *Server) create(ctx context.Context, peer Peer, request *caapi.IstioCertificateRequest) (*caapi.IstioCertificateResponse, error) {
	asked := s.asked(peer, request)
	identity, err := readIdentity(asked)
	if err == nil {
		err = s.authorize(ctx, peer, identity)
	}
	if err != nil {
		return nil, s.refuse(ctx, peer, asked, err)
	}
	chain, leaf, err := s.cfg.Authority.Issue(identity, request.GetCsr(), lifetime(request.GetValidityDuration()))
	if err != nil {
		return nil, s.refuse(ctx, peer, asked, err)
	}
	s.requests.WithLabelValues(resultIssued).Inc()
	s.cfg.Logger.Info("issued certificate", "peer", peer, "identity", identity.String(), "serial", leaf.SerialNumber.Text(16), "not_after", leaf.NotAfter)
	return &caapi.IstioCertificateResponse{CertChain: chain}, nil
}

// asked returns the identity that a request is about, as it was written.
func (s *Server) asked(peer Peer, request *caapi.IstioCertificateRequest) string {
	if value, present := request.GetMetadata().GetFields()[impersonated]; present {
		return value.GetStringValue()
	}
	return peer.Identity(s.cfg.Authority.TrustDomain()).String()
}

func readIdentity(asked string) (spiffe.ID, error) {
	identity, err := spiffe.Parse(asked)
	if err != nil {
		return spiffe.ID{}, refuse(MalformedIdentity, "read %s: %w", impersonated, err)
	}
	return identity, nil
}

// unauthenticated counts a caller who did not prove who he is.
func (s *Server) unauthenticated(err error) {
	s.requests.WithLabelValues(resultUnauthenticated).Inc()
	if status.Code(err) == codes.Unauthenticated {
		s.audit.count(NotAuthenticated)
	}
}

// refuse records why there is no certificate and returns what the caller gets.
func (s *Server) refuse(ctx context.Context, peer Peer, asked string, err error) error {
	reason, refused := refusalOf(err)
	if !refused {
		s.requests.WithLabelValues(resultFailed).Inc()
		s.cfg.Logger.Error("sign certificate", "peer", peer, "identity", clip(asked), "error", err)
		return status.Error(codes.Unavailable, "certificates cannot be signed now")
	}
	s.audit.refused(ctx, peer, asked, reason, err)
	if bad := (*requestError)(nil); errors.As(err, &bad) && reason != ForeignName {
		s.requests.WithLabelValues(resultBadRequest).Inc()
		return status.Error(codes.InvalidArgument, bad.Error())
	}
	s.requests.WithLabelValues(resultDenied).Inc()
	return errDenied
}

// lifetime reads a number of seconds without overflowing.
func lifetime(seconds int64) time.Duration {
	if seconds <= 0 || seconds > int64(maxLifetime/time.Second) {
		return maxLifetime
	}
	return time.Duration(seconds) * time.Second
}
