package waypointtest

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

// AppPort is where the application of a pod listens.
const AppPort = 8080

// Pod is a client, an endpoint, or both.
type Pod struct {
	Name string
	Addr netip.Addr
	ID   spiffe.ID

	mesh      *Mesh
	published *api.Workload

	mu     sync.Mutex
	tunnel *hbone.Client
	asked  []Asked
}

// Asked is what an endpoint was asked for through a tunnel.
type Asked struct {
	Authority string
	Header    http.Header
	Peer      spiffe.ID
}

func clientTLS(store *certs.Store, id spiffe.ID) func(...spiffe.ID) *tls.Config {
	return func(expected ...spiffe.ID) *tls.Config { return store.ClientConfig(id, expected...) }
}

// Pod makes and publishes one.
func (m *Mesh) Pod(name, addr string, changes ...func(*api.Workload)) *Pod {
	m.t.Helper()
	p := &Pod{Name: name, Addr: netip.MustParseAddr(addr), ID: identity(name), mesh: m}
	p.published = &api.Workload{
		Uid: workload.PodUID("Kubernetes", "shop", name), Name: name, Namespace: "shop", ServiceAccount: name, ClusterId: "Kubernetes",
		TunnelProtocol: api.TunnelProtocol_HBONE, Addresses: workloadtest.Addrs(addr), WorkloadName: name, CanonicalName: name,
	}
	for _, change := range changes {
		change(p.published)
	}
	m.Certs.Want(p.ID)
	m.Publish(p.published)
	return p
}

// Plain publishes a pod as taking no tunnels.
func Plain(w *api.Workload) { w.TunnelProtocol = api.TunnelProtocol_NONE }

// Policies has the waypoint ask about requests to a pod.
func (p *Pod) Policies(names ...string) {
	config, err := anypb.New(&mesh.WaypointPolicies{Names: names})
	if err != nil {
		p.mesh.t.Fatal(err)
	}
	p.published.Extensions = []*api.Extension{{Name: workload.WaypointPoliciesExtension, Config: config}}
	p.mesh.Publish(p.published)
}

// Withdraw takes the pod back: the mesh knows it no longer.
func (p *Pod) Withdraw() { p.mesh.Remove(p.published) }

// Tunnel to the waypoint, from the pod's own address.
func (p *Pod) Tunnel() *hbone.Client {
	t := p.mesh.t
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tunnel != nil {
		return p.tunnel
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := p.mesh.Certs.Get(ctx, p.ID); err != nil {
		t.Fatal(err)
	}
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, 0))}
	raw, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(Address, tunnelPort).String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, p.mesh.Certs.ClientConfig(p.ID, identity("way")))
	if err := conn.HandshakeContext(ctx); err != nil {
		t.Fatal(err)
	}
	if p.tunnel, err = hbone.NewClient(conn, hbone.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.tunnel.Close() })
	return p.tunnel
}

// Open asks the waypoint for a connection.
func (p *Pod) Open(to string) (hbone.Stream, error) {
	p.mesh.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	stream, err := p.Tunnel().Open(ctx, hbone.Request{Authority: netip.MustParseAddrPort(to), Header: http.Header{"Forwarded": {`for="10.9.99.99:1"`}}})
	if err == nil {
		p.mesh.t.Cleanup(func() { stream.Close() })
	}
	return stream, err
}

// Dial is Open, and must succeed.
func (p *Pod) Dial(to string) hbone.Stream {
	p.mesh.t.Helper()
	stream, err := p.Open(to)
	if err != nil {
		p.mesh.t.Fatal(err)
	}
	stream.SetDeadline(time.Now().Add(10 * time.Second))
	return stream
}

// Asked is what the pod was asked for so far.
func (p *Pod) Asked() []Asked {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Asked(nil), p.asked...)
}

// Serve takes tunnels, and gives what is asked for to app, until the test ends. as is
// whom the pod claims to be, by its certificate.
func (p *Pod) Serve(as spiffe.ID, app func(net.Conn)) (stop func()) {
	t := p.mesh.t
	t.Helper()
	listener, err := net.Listen("tcp", netip.AddrPortFrom(p.Addr, tunnelPort).String())
	if err != nil {
		t.Fatal(err)
	}
	p.mesh.Certs.Want(as)
	config := p.mesh.Certs.ServerConfig(as)
	return p.mesh.Run(p.Name, func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { listener.Close() })
		defer stop()
		var serving sync.WaitGroup
		defer serving.Wait()
		for {
			raw, err := listener.Accept()
			if err != nil {
				return ctx.Err()
			}
			serving.Go(func() { p.serveTunnel(ctx, tls.Server(raw, config), app) })
		}
	})
}

func (p *Pod) serveTunnel(ctx context.Context, conn *tls.Conn, app func(net.Conn)) {
	if err := conn.HandshakeContext(ctx); err != nil {
		conn.Close()
		return
	}
	peer, err := certs.PeerID(conn.ConnectionState())
	if err != nil {
		conn.Close()
		return
	}
	hbone.Serve(ctx, conn, hbone.Options{DrainTimeout: -1}, func(_ context.Context, in *hbone.Incoming) {
		p.mu.Lock()
		p.asked = append(p.asked, Asked{in.Authority, in.Header, peer})
		p.mu.Unlock()
		if in.Authority != fmt.Sprintf("%s:%d", p.Addr, AppPort) {
			in.Refuse(http.StatusServiceUnavailable, "no such port")
			return
		}
		stream, err := in.Accept()
		if err != nil {
			return
		}
		app(stream)
	})
}

// Published is what the mesh knows of the pod.
func (p *Pod) Published() *api.Workload { return proto.CloneOf(p.published) }
