package proxytest

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/workload"
)

const waypointKey = "shop/waypoint.shop.svc.cluster.local"

// waypointOf makes a pod of the waypoint that stands before the service "cart" of
// the server, and the waypoint's Service.
func waypointOf(m *Mesh, server *Pod, vip string) *intruder {
	m.t.Helper()
	gate := m.intruder("waypoint")
	gate.published.NativeTunnel = true
	gate.published.Services = map[string]*api.PortList{waypointKey: {Ports: []*api.Port{{ServicePort: 15008, TargetPort: 15008}}}}
	m.Publish(gate.published, &api.Service{
		Name: "waypoint", Namespace: "shop", Hostname: "waypoint.shop.svc.cluster.local",
		Ports: []*api.Port{{ServicePort: 15008, TargetPort: 15008}},
	})
	addAddress(m.t, vip)
	cart := m.service("cart", vip)
	cart.Waypoint = &api.GatewayAddress{
		Destination:   &api.GatewayAddress_Hostname{Hostname: &api.NamespacedHostname{Namespace: "shop", Hostname: "waypoint.shop.svc.cluster.local"}},
		HboneMtlsPort: 15008,
	}
	server.published.Services = map[string]*api.PortList{workload.ServiceKey("shop", cart.Hostname): {Ports: cart.Ports}}
	m.Publish(cart, server.published)
	return gate
}

// callers has the application say who it sees, and counts who came.
func callers(server *Pod) *atomic.Int64 {
	var seen atomic.Int64
	server.App(func(conn *net.TCPConn) {
		seen.Add(1)
		io.WriteString(conn, conn.RemoteAddr().(*net.TCPAddr).IP.String())
		conn.Close()
	})
	return &seen
}

// openFor opens a connection to the server's application, as somebody's.
func openFor(client *hbone.Client, server *Pod, header http.Header) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stream, err := client.Open(ctx, hbone.Request{Authority: netip.AddrPortFrom(server.Addr, AppPort), Header: header})
	if err != nil {
		return "", err
	}
	defer stream.Close()
	said, err := io.ReadAll(stream)
	return string(said), err
}

func forwarded(value string) http.Header { return http.Header{"Forwarded": {value}} }

// TestTheApplicationSeesForWhomAWaypointConnects, on the word of the waypoint that
// stands before it, and of nobody else.
func TestTheApplicationSeesForWhomAWaypointConnects(t *testing.T) {
	m := New(t)
	server, client := m.Pod("server"), m.Pod("client")
	server.StartInbound()
	seen := callers(server)
	gate := waypointOf(m, server, "10.9.200.1")
	stranger := m.intruder("stranger")

	through := func(i *intruder) *hbone.Client {
		tunnel, err := i.tunnel(server)
		if err != nil {
			t.Fatal(err)
		}
		return tunnel
	}
	atWaypoint, atStranger := through(gate), through(stranger)
	who := `for="` + client.Addr.String() + `:4711"`

	if said, err := openFor(atWaypoint, server, forwarded(who)); err != nil || said != client.Addr.String() {
		t.Errorf("from the waypoint, the application sees %q (%v), want %s", said, err, client.Addr)
	}
	if said, err := openFor(atStranger, server, forwarded(who)); err != nil || said != stranger.Addr.String() {
		t.Errorf("from somebody else, the application sees %q (%v), want %s", said, err, stranger.Addr)
	}
	before := seen.Load()
	for _, header := range []http.Header{nil, forwarded("for=unknown"), forwarded(`for="somebody"`), {"Forwarded": {who, who}}} {
		if said, err := openFor(atWaypoint, server, header); err == nil {
			t.Errorf("%v: the application sees %q", header, said)
		}
	}
	if n := seen.Load() - before; n != 0 {
		t.Errorf("%d connections came although the waypoint did not say for whom", n)
	}
	if n := m.reasons("BadForwarded"); n != 4 {
		t.Errorf("%d lines say so, want 4", n)
	}

	// Once the Service is no longer behind it, the waypoint's word is anybody's.
	cart := m.service("cart", "10.9.200.1")
	m.Publish(cart)
	if said, err := openFor(atWaypoint, server, forwarded(who)); err != nil || said != gate.Addr.String() {
		t.Errorf("from what was the waypoint, the application sees %q (%v), want %s", said, err, gate.Addr)
	}
}

// serveAsWaypoint answers tunnels as the waypoint: what is asked for is echoed.
func serveAsWaypoint(t *testing.T, gate *intruder) *atomic.Int64 {
	t.Helper()
	var asked atomic.Int64
	listener := gate.Listen(15008)
	config := gate.config.Clone()
	config.ClientAuth = tls.RequireAnyClientCert
	go func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			go hbone.Serve(context.Background(), tls.Server(raw, config), hbone.Options{DrainTimeout: -1}, func(_ context.Context, in *hbone.Incoming) {
				asked.Add(1)
				stream, err := in.Accept()
				if err != nil {
					return
				}
				io.WriteString(stream, in.Authority)
				stream.CloseWrite()
				io.Copy(io.Discard, stream)
				stream.Close()
			})
		}
	}()
	return &asked
}

// TestClientsGoThroughTheWaypoint, whether they address the Service or the pod; and
// without a waypoint they get nowhere.
func TestClientsGoThroughTheWaypoint(t *testing.T) {
	m := New(t)
	server, client := m.Pod("server"), m.Pod("client", On("another"))
	server.StartInbound()
	client.StartOutbound()
	seen := callers(server)
	gate := waypointOf(m, server, "10.9.200.1")

	// There is no waypoint yet that answers.
	client.Refused(netip.MustParseAddr("10.9.200.1"))

	asked := serveAsWaypoint(t, gate)
	eventually(t, func() error {
		conn, err := client.tryDial(netip.AddrPortFrom(netip.MustParseAddr("10.9.200.1"), client.captured))
		if err != nil {
			return err
		}
		defer conn.Close()
		said, err := io.ReadAll(conn)
		if want := netip.AddrPortFrom(netip.MustParseAddr("10.9.200.1"), client.captured).String(); err == nil && string(said) != want {
			t.Errorf("the waypoint was asked for %q, want %s", said, want)
		}
		return err
	})
	if asked.Load() == 0 {
		t.Fatal("the waypoint was not asked")
	}

	// Its pods are gone.
	m.Publish(func() *api.Workload { w := gate.published; w.Status = api.WorkloadStatus_UNHEALTHY; return w }())
	client.Refused(netip.MustParseAddr("10.9.200.1"))
	if n := seen.Load(); n != 0 {
		t.Errorf("%d connections came to the application past the waypoint", n)
	}
	if m.reasons("WaypointUnavailable") == 0 {
		t.Error("no line says that there was no waypoint")
	}
}

// reasons counts the lines of the access log that give one.
func (m *Mesh) reasons(reason string) (n int) {
	for _, line := range m.lines.access(m.t) {
		if line["reason"] == reason {
			n++
		}
	}
	return n
}
