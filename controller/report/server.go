package report

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"k8s.io/apimachinery/pkg/types"

	reportapi "github.com/ambit-mesh/ambit/api/report"
	"github.com/ambit-mesh/ambit/controller/ca"
)

const (
	// helloTimeout is how long a stream may take to say whose it is.
	helloTimeout = 10 * time.Second
	// quietTimeout ends a stream on which nothing arrives: its peer is gone.
	quietTimeout = 60 * time.Second
	// checkInterval is how often an open stream is checked for that, and for
	// whether this is still the leader.
	checkInterval = time.Second
	// statementsPerSecond is what is taken of one node, and statementBurst what it
	// may say at once: all about all its pods. What comes faster waits, and then
	// its sender does.
	statementsPerSecond = 200
	statementBurst      = maxObservations
	// maxStreamAge makes a node show its token again.
	maxStreamAge = 30 * time.Minute
)

// Pods knows where a pod runs.
type Pods interface {
	// NodeOf returns the node of the pod that has this name and UID.
	NodeOf(pod types.NamespacedName, uid types.UID) (node string, found bool)
}

// Authenticator finds out who calls; the error is a gRPC status.
type Authenticator interface {
	Authenticate(context.Context) (ca.Peer, error)
}

// ServerConfig is what a [Server] needs.
type ServerConfig struct {
	Registry      *Registry
	Authenticator Authenticator
	Pods          Pods
	// Leading says whether this process is the leader, the only one that
	// nodes report to.
	Leading func() bool
	// SystemNamespace is where ztunnel's account is.
	SystemNamespace string
	Logger          *slog.Logger
	Registerer      prometheus.Registerer
}

// Server is the reports' gRPC service.
type Server struct {
	reportapi.UnimplementedReportServiceServer
	cfg     ServerConfig
	refused prometheus.Counter
}

// NewServer returns the reports' service.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{cfg: cfg, refused: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "ambit_reports_refused_total", Help: "Streams and statements of nodes that were not accepted.",
	})}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(s.refused)
	}
	return s
}

// Stream is one node's stream as the server sees it.
type stream = reportapi.ReportService_ReportServer

var (
	errNotLeading = status.Error(codes.Unavailable, "this controller does not lead: connect again")
	errDenied     = status.Error(codes.PermissionDenied, "not a ztunnel that may report for this node")
	errAged       = status.Error(codes.Unavailable, "stream is old: connect again")
	errQuiet      = status.Error(codes.DeadlineExceeded, "no heartbeat")
	errReplaced   = status.Error(codes.Aborted, "another stream reports for this node")
)

// Report serves one node until its stream ends.
func (s *Server) Report(stream stream) error {
	if !s.cfg.Leading() {
		return errNotLeading
	}
	peer, err := s.cfg.Authenticator.Authenticate(stream.Context())
	if err != nil {
		s.refused.Inc()
		return err
	}
	// gRPC ends a pending Recv when the handler returns, and with it this
	// goroutine.
	messages := make(chan *reportapi.NodeReport)
	ended := make(chan error, 1)
	go func() { ended <- receive(stream, messages, rate.NewLimiter(statementsPerSecond, statementBurst)) }()

	session, err := s.greet(stream.Context(), peer, messages, ended)
	if err != nil {
		return err
	}
	defer s.cfg.Registry.close(session)
	logger := s.cfg.Logger.With("node", session.node, "ztunnel", session.podName)
	logger.Info("node reports", "version", session.version)
	err = s.serve(stream, session, messages, ended, logger)
	logger.Info("node stopped reporting", "reason", err)
	return err
}

func receive(stream stream, messages chan<- *reportapi.NodeReport, pace *rate.Limiter) error {
	for {
		if err := pace.Wait(stream.Context()); err != nil {
			return err
		}
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case messages <- message:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// greet reads the Hello and opens the session of the node that it names, which
// must be the one that the token is bound to.
func (s *Server) greet(ctx context.Context, peer ca.Peer, messages <-chan *reportapi.NodeReport, ended <-chan error) (*session, error) {
	var hello *reportapi.Hello
	select {
	case message := <-messages:
		hello = message.GetHello()
	case err := <-ended:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(helloTimeout):
	}
	if hello == nil {
		s.refused.Inc()
		return nil, status.Error(codes.InvalidArgument, "a stream begins with a Hello")
	}
	if reason := s.objection(peer, hello); reason != nil {
		s.refused.Inc()
		s.cfg.Logger.Warn("refused report stream", "peer", peer, "node", hello.GetNode(), "reason", reason)
		return nil, errDenied
	}
	return s.cfg.Registry.open(peer.Node, hello), nil
}

// objection says why a peer may not report as its Hello says.
func (s *Server) objection(peer ca.Peer, hello *reportapi.Hello) error {
	switch {
	case peer.Namespace != s.cfg.SystemNamespace || peer.ServiceAccount != ca.TunnelServiceAccount:
		return errors.New("only ztunnel reports")
	case hello.GetNode() != peer.Node:
		return errors.New("the token is bound to another node")
	case hello.GetPodName() != peer.PodName:
		return fmt.Errorf("the token is bound to another pod than %q", hello.GetPodName())
	}
	return nil
}

func (s *Server) serve(stream stream, session *session, messages <-chan *reportapi.NodeReport, ended <-chan error, logger *slog.Logger) error {
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	aged := time.After(maxStreamAge)
	last := time.Now()
	for {
		select {
		case message := <-messages:
			last = time.Now()
			s.take(session, message, logger)
		case <-session.wake:
			for _, due := range s.cfg.Registry.due(session) {
				if err := stream.Send(due.reply()); err != nil {
					return err
				}
			}
		case err := <-ended:
			return err
		case <-session.replaced:
			return errReplaced
		case <-aged:
			return errAged
		case <-check.C:
			if !s.cfg.Leading() {
				return errNotLeading
			}
			if time.Since(last) > quietTimeout {
				return errQuiet
			}
		}
	}
}

func (r release) reply() *reportapi.ControllerReply {
	return &reportapi.ControllerReply{Kind: &reportapi.ControllerReply_Release{
		Release: &reportapi.Release{Uid: string(r.uid), WithdrawingSince: timestamppb.New(r.asked)},
	}}
}

// take applies one message of a node.
func (s *Server) take(session *session, message *reportapi.NodeReport, logger *slog.Logger) {
	registry := s.cfg.Registry
	switch kind := message.GetKind().(type) {
	case *reportapi.NodeReport_Heartbeat:
		registry.beat(session, kind.Heartbeat)
	case *reportapi.NodeReport_SnapshotSent:
		registry.snapshotSent(session)
	case *reportapi.NodeReport_Workload:
		w := kind.Workload
		err := s.foreign(session.node, w)
		if err == nil {
			err = registry.observe(session, w)
		}
		if err != nil {
			s.refused.Inc()
			logger.Warn("refused report", "namespace", cut(w.GetNamespace()), "pod", cut(w.GetName()), "uid", cut(w.GetUid()), "reason", err)
		}
	default:
		s.refused.Inc()
		logger.Warn("refused report", "reason", fmt.Sprintf("unexpected %T", kind))
	}
}

// foreign says why a node may not speak of a pod. A pod that is not known here
// yet passes: what is said of it is only ever read for a pod of that node.
func (s *Server) foreign(node string, w *reportapi.WorkloadState) error {
	on, found := s.cfg.Pods.NodeOf(types.NamespacedName{Namespace: w.GetNamespace(), Name: w.GetName()}, types.UID(w.GetUid()))
	if found && on != node {
		return fmt.Errorf("the pod runs on node %q", on)
	}
	return nil
}
