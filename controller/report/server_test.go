package report

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	reportapi "github.com/ambit-mesh/ambit/api/report"
	"github.com/ambit-mesh/ambit/controller/ca"
)

// patience of a test with what happens in other goroutines.
const patience = 5 * time.Second

// peers authenticates by the call's metadata: the token names the peer.
type peers map[string]ca.Peer

func (p peers) Authenticate(ctx context.Context) (ca.Peer, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if tokens := md.Get("authorization"); len(tokens) == 1 {
		if peer, ok := p[tokens[0]]; ok {
			return peer, nil
		}
	}
	return ca.Peer{}, status.Error(codes.Unauthenticated, "who are you")
}

// places are the nodes of pods, by name and UID.
type places map[types.UID]string

func (p places) NodeOf(_ types.NamespacedName, uid types.UID) (string, bool) {
	node, ok := p[uid]
	return node, ok
}

type service struct {
	registry *Registry
	server   *Server
	client   reportapi.ReportServiceClient
	leading  atomic.Bool
	acks     *push
}

func newService(t *testing.T) *service {
	t.Helper()
	s := &service{acks: &push{acked: map[string]uint64{}}}
	s.leading.Store(true)
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	s.registry = NewRegistry(RegistryConfig{
		Acks: s.acks, Tunnels: &tunnels{}, Leases: fake.NewClientset().CoordinationV1().Leases(system), Logger: logger,
	})
	s.server = NewServer(ServerConfig{
		Registry: s.registry, Leading: s.leading.Load, SystemNamespace: system, Logger: logger,
		Pods: places{uid: "n1", "uid-pay": "n2"},
		Authenticator: peers{
			"z1":     {Namespace: system, ServiceAccount: "ztunnel", PodName: "ztunnel-n1", PodUID: "z1", Node: "n1"},
			"z2":     {Namespace: system, ServiceAccount: "ztunnel", PodName: "ztunnel-n2", PodUID: "z2", Node: "n2"},
			"cart":   {Namespace: "shop", ServiceAccount: "cart", PodName: "ztunnel-n1", PodUID: "c", Node: "n1"},
			"copied": {Namespace: "shop", ServiceAccount: "ztunnel", PodName: "ztunnel-n1", PodUID: "c", Node: "n1"},
		},
	})
	server := grpc.NewServer()
	reportapi.RegisterReportServiceServer(server, s.server)
	listener := bufconn.Listen(1 << 16)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	connection, err := grpc.NewClient("passthrough:///controller", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	s.client = reportapi.NewReportServiceClient(connection)
	return s
}

// stream opens a stream and sends messages on it.
func (s *service) stream(t *testing.T, token string, messages ...*reportapi.NodeReport) grpc.BidiStreamingClient[reportapi.NodeReport, reportapi.ControllerReply] {
	t.Helper()
	stream, err := s.client.Report(metadata.AppendToOutgoingContext(t.Context(), "authorization", token))
	if err != nil {
		t.Fatal(err)
	}
	for _, message := range messages {
		if err := stream.Send(message); err != nil {
			// The reason is what Recv says.
			return stream
		}
	}
	return stream
}

func hello(node, pod string) *reportapi.NodeReport {
	return &reportapi.NodeReport{Kind: &reportapi.NodeReport_Hello{Hello: &reportapi.Hello{Node: node, PodName: pod}}}
}

func workload(w *reportapi.WorkloadState) *reportapi.NodeReport {
	return &reportapi.NodeReport{Kind: &reportapi.NodeReport_Workload{Workload: w}}
}

func complete() *reportapi.NodeReport {
	return &reportapi.NodeReport{Kind: &reportapi.NodeReport_SnapshotSent{SnapshotSent: &reportapi.SnapshotSent{}}}
}

func heartbeat() *reportapi.NodeReport {
	return &reportapi.NodeReport{Kind: &reportapi.NodeReport_Heartbeat{Heartbeat: &reportapi.Heartbeat{}}}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestWhoMayReport(t *testing.T) {
	for title, c := range map[string]struct {
		token    string
		messages []*reportapi.NodeReport
		want     codes.Code
	}{
		"nobody known":                    {"?", []*reportapi.NodeReport{hello("n1", "ztunnel-n1")}, codes.Unauthenticated},
		"a workload":                      {"cart", []*reportapi.NodeReport{hello("n1", "ztunnel-n1")}, codes.PermissionDenied},
		"an account of the same name":     {"copied", []*reportapi.NodeReport{hello("n1", "ztunnel-n1")}, codes.PermissionDenied},
		"ztunnel for another node":        {"z1", []*reportapi.NodeReport{hello("n2", "ztunnel-n1")}, codes.PermissionDenied},
		"ztunnel as another pod":          {"z1", []*reportapi.NodeReport{hello("n1", "ztunnel-n2")}, codes.PermissionDenied},
		"ztunnel for no node":             {"z1", []*reportapi.NodeReport{hello("", "")}, codes.PermissionDenied},
		"ztunnel that does not say whose": {"z1", []*reportapi.NodeReport{heartbeat()}, codes.InvalidArgument},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			_, err := s.stream(t, c.token, c.messages...).Recv()
			if status.Code(err) != c.want {
				t.Errorf("%v, want %v", err, c.want)
			}
			if len(s.registry.nodes) != 0 {
				t.Error("something was taken from it")
			}
			if testutil.ToFloat64(s.server.refused) == 0 {
				t.Error("not counted")
			}
		})
	}
}

func TestANodeSpeaksOfItsOwnPods(t *testing.T) {
	s := newService(t)
	pay := &reportapi.WorkloadState{Namespace: "shop", Name: "pay", Uid: "uid-pay", State: reportapi.CaptureState_CAPTURED}
	stream := s.stream(t, "z1", hello("n1", "ztunnel-n1"), workload(pay), workload(stateOf(reportapi.CaptureState_CAPTURED)),
		workload(&reportapi.WorkloadState{Namespace: "shop", Name: "new", Uid: "uid-new", State: reportapi.CaptureState_PENDING}), complete())
	eventually(t, "the snapshot is complete", func() bool { return s.registry.Reporting("n1") })
	if o, ok := s.registry.Observed("n1", uid); !ok || o.State != reportapi.CaptureState_CAPTURED || o.Pod != cart {
		t.Errorf("own pod: %+v, %v", o, ok)
	}
	if _, ok := s.registry.Observed("n1", "uid-new"); !ok {
		t.Error("a pod that is not known here yet was refused")
	}
	for _, node := range []string{"n1", "n2"} {
		if o, ok := s.registry.Observed(node, "uid-pay"); ok {
			t.Errorf("on %s, a pod of another node: %+v", node, o)
		}
	}
	if got := testutil.ToFloat64(s.server.refused); got != 1 {
		t.Errorf("%v refusals", got)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err == nil {
		t.Error("the stream goes on after its end")
	}
	if o, ok := s.registry.Observed("n1", uid); !ok || o.State != reportapi.CaptureState_CAPTURED {
		t.Error("the end of the stream ended the observation")
	}
}

func TestReleaseReachesItsNode(t *testing.T) {
	s := newService(t)
	running, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.registry.Run(running) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	for _, node := range []string{"n1", "n2"} {
		s.acks.connect(node)
		s.acks.ack(node, 1)
	}
	s.registry.Remember(cart, uid, Remembered{})
	s.registry.Published(Publication{Generation: s.registry.Captured().Generation(), Number: 1})
	other := s.stream(t, "z2", hello("n2", "ztunnel-n2"), complete())
	for range 2 { // A node that comes back asks again.
		stream := s.stream(t, "z1", hello("n1", "ztunnel-n1"), workload(stateOf(reportapi.CaptureState_WITHDRAWING)), complete())
		reply, err := stream.Recv()
		if err != nil || reply.GetRelease().GetUid() != string(uid) {
			t.Fatalf("%v, %v", reply, err)
		}
	}
	go func() {
		if reply, err := other.Recv(); err == nil {
			t.Errorf("another node was told %v", reply)
		}
	}()
}

func TestOnlyTheLeaderIsReportedTo(t *testing.T) {
	s := newService(t)
	stream := s.stream(t, "z1", hello("n1", "ztunnel-n1"), complete())
	eventually(t, "it reports", func() bool { return s.registry.Reporting("n1") })
	s.leading.Store(false)
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream of who no longer leads: %v", err)
	}
	if _, err := s.stream(t, "z1", hello("n1", "ztunnel-n1")).Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("a new stream: %v", err)
	}
}

func TestANewStreamReplacesTheOld(t *testing.T) {
	s := newService(t)
	old := s.stream(t, "z1", hello("n1", "ztunnel-n1"), complete())
	eventually(t, "it reports", func() bool { return s.registry.Reporting("n1") })
	s.stream(t, "z1", hello("n1", "ztunnel-n1"))
	if _, err := old.Recv(); status.Code(err) != codes.Aborted {
		t.Errorf("the old stream: %v", err)
	}
}

// TestWhatANodeSaysIsBounded: names that no pod has, and more pods than a node
// runs, are refused and take no memory.
func TestWhatANodeSaysIsBounded(t *testing.T) {
	s := newService(t)
	long := strings.Repeat("x", maxNameBytes+1)
	messages := []*reportapi.NodeReport{hello("n1", "ztunnel-n1")}
	for _, w := range []*reportapi.WorkloadState{
		{Namespace: long, Name: "a", Uid: "1"}, {Namespace: "a", Name: long, Uid: "2"}, {Namespace: "a", Name: "a", Uid: long},
	} {
		messages = append(messages, workload(w))
	}
	for i := range maxObservations + 10 {
		messages = append(messages, workload(&reportapi.WorkloadState{Namespace: "a", Name: fmt.Sprint("pod", i), Uid: fmt.Sprint("uid", i), Reason: strings.Repeat("r", 2*maxTextBytes)}))
	}
	s.stream(t, "z1", append(messages, complete())...)
	eventually(t, "the snapshot is complete", func() bool { return s.registry.Reporting("n1") })
	s.registry.mu.Lock()
	defer s.registry.mu.Unlock()
	n := s.registry.nodes["n1"]
	if len(n.observed) != maxObservations || len(n.session.mentioned) != maxObservations {
		t.Errorf("%d pods are remembered, %d mentioned", len(n.observed), len(n.session.mentioned))
	}
	for _, o := range n.observed {
		if len(o.Reason) > maxTextBytes || len(o.Pod.Name) > maxNameBytes {
			t.Fatalf("remembered: %d bytes of reason, a name of %d", len(o.Reason), len(o.Pod.Name))
		}
	}
	if got := testutil.ToFloat64(s.server.refused); got != 13 {
		t.Errorf("%v refused, want 13", got)
	}
}
