package proxytest

import (
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// mutualTLS publishes what is said of the pod's mode.
func (p *Pod) mutualTLS(t *testing.T, m *mesh.MutualTLS) {
	t.Helper()
	config, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	published := proto.Clone(p.published).(*api.Workload)
	published.Extensions = []*api.Extension{{Name: workload.MutualTLSExtension, Config: config}}
	p.mesh.Publish(published)
}

// A connection to a strict pod that is not captured yet waits for that, and goes through a tunnel then. Before, nothing goes.
func TestConnectionWaitsForTheCaptureOfItsDestination(t *testing.T) {
	m, client, server := ways[0].make(t)
	server.App(func(c *net.TCPConn) { c.Write([]byte("220 ready")); c.Close() })
	server.mutualTLS(t, &mesh.MutualTLS{Mode: mesh.MutualTLS_STRICT, AwaitsCapture: true})
	h := client.hold(client.taker(), nextPort(), server.Addr)
	select {
	case a := <-h.answered:
		t.Fatalf("answered %+v before the destination was captured", a)
	case <-time.After(300 * time.Millisecond):
	}
	if dialed := client.Capture.Dialed(); len(dialed) > 0 {
		t.Fatalf("dialed %v before the destination was captured", dialed)
	}
	server.mutualTLS(t, &mesh.MutualTLS{Mode: mesh.MutualTLS_STRICT})
	if a := <-h.answered; !a.passed {
		t.Fatalf("answered %+v", a)
	}
	conn := client.goOn(t, h)
	hear(t, conn, "220 ready")
	conn.CloseWrite()
	hearEOF(t, conn)
	if line := m.ofDirection("outbound"); line["reason"] != "Closed" {
		t.Errorf("logged %v", line)
	}
	if dialed := client.Capture.Dialed(); slices.ContainsFunc(dialed, func(a netip.AddrPort) bool { return a.Port() != 15008 }) {
		t.Errorf("dialed %v", dialed)
	}
}

// One that is not captured in time is refused.
func TestConnectionToWhatIsNotCapturedIsRefused(t *testing.T) {
	m := New(t)
	client, server := m.Pod("client"), m.Pod("server")
	client.StartOutbound()
	var reached atomic.Bool
	server.App(func(*net.TCPConn) { reached.Store(true) })
	server.mutualTLS(t, &mesh.MutualTLS{Mode: mesh.MutualTLS_STRICT, AwaitsCapture: true})
	h := client.hold(client.taker(), nextPort(), server.Addr)
	select {
	case a := <-h.answered:
		if a.refused != syscall.ECONNREFUSED {
			t.Errorf("answered %+v, want connection refused", a)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("waits for ever")
	}
	if line := m.Access(1)[0]; line["reason"] != "NotCaptured" {
		t.Errorf("logged %v: %v, want NotCaptured", line["reason"], line["error"])
	}
	if reached.Load() || len(client.Capture.Dialed()) > 0 {
		t.Errorf("went on: dialed %v", client.Capture.Dialed())
	}
}
