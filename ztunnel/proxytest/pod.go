package proxytest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
	"github.com/ambit-mesh/ambit/ztunnel/inbound"
	"github.com/ambit-mesh/ambit/ztunnel/outbound"
)

// Pod is an application and, once started, the two halves of its proxy.
type Pod struct {
	Name    string
	Addr    netip.Addr
	ID      spiffe.ID
	Capture *Capture
	// Inbound and Outbound are nil until started.
	Inbound  *inbound.Listener
	Outbound *outbound.Listener
	// CloseInbound closes the listeners of Inbound, so that another may start.
	CloseInbound func()
	// StopInbound and StopOutbound drain them, and return when they have ended.
	StopInbound, StopOutbound func()

	// Egress is its way out of the mesh.
	Egress *egress.Pod

	// take is what Outbound wants to be called with held connections.
	take chan func(outbound.Held)

	mesh      *Mesh
	published *api.Workload
	captured  uint16
}

// Plain publishes a pod as not captured.
func Plain(w *api.Workload) { w.TunnelProtocol = api.TunnelProtocol_NONE }

// On publishes a pod on a node; each is on one of its own if nothing is said.
func On(node string) func(*api.Workload) {
	return func(w *api.Workload) { w.Node = node }
}

// Pod makes and publishes a pod without application or proxy.
func (m *Mesh) Pod(name string, changes ...func(*api.Workload)) *Pod {
	m.t.Helper()
	n := len(m.pods) + 1
	ip := fmt.Sprintf("10.9.%d.1", n)
	if m.IPv6 {
		ip = fmt.Sprintf("fd09::%d:1", n)
	}
	addAddress(m.t, ip)
	w := &api.Workload{
		Uid: workload.PodUID("Kubernetes", "shop", name), Name: name, Namespace: "shop", ServiceAccount: name,
		ClusterId: "Kubernetes", Node: "node-of-" + name, TunnelProtocol: api.TunnelProtocol_HBONE,
		Addresses: workloadtest.Addrs(ip), WorkloadName: name, CanonicalName: name,
	}
	for _, change := range changes {
		change(w)
	}
	addr := netip.MustParseAddr(ip)
	p := &Pod{
		Name:      name,
		Addr:      addr,
		ID:        spiffe.ID{TrustDomain: trustDomain, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount},
		Capture:   &Capture{addr: addr},
		mesh:      m,
		published: w,
	}
	m.mu.Lock()
	m.pods[w.Uid] = p
	m.mu.Unlock()
	m.Publish(w)
	return p
}

// Start starts both halves of the pod's proxy.
func (p *Pod) Start() *Pod {
	p.mesh.t.Helper()
	p.StartInbound()
	p.StartOutbound()
	return p
}

// StartInbound starts what takes connections.
func (p *Pod) StartInbound() {
	p.mesh.t.Helper()
	p.want()
	tunnels, plaintext := p.Listen(15008), p.Listen(PlaintextPort)
	p.CloseInbound = func() { tunnels.Close(); plaintext.Close() }
	in := inbound.New(inbound.Config{
		HBONE:        tunnels,
		Plaintext:    plaintext,
		App:          p.Capture,
		TLS:          p.mesh.Certs.ServerConfig(p.ID),
		Target:       p.workload,
		Snapshot:     p.mesh.Store.Snapshot,
		Policy:       p.mesh,
		Trust:        p.mesh.Certs,
		Conns:        p.mesh.Conns,
		Relay:        p.mesh.Relay,
		Quotas:       p.mesh.quotas(),
		Share:        p.mesh.shares().Join(),
		Logger:       p.mesh.log,
		DrainTimeout: p.mesh.DrainTimeout,
	})
	p.mesh.mu.Lock()
	p.Inbound = in
	p.mesh.mu.Unlock()
	p.StopInbound = p.mesh.run(p.Name+" inbound", in.Run)
}

// StartOutbound starts what carries the connections that the pod opens.
func (p *Pod) StartOutbound() {
	p.mesh.t.Helper()
	p.want()
	p.captured = p.mesh.captured
	p.mesh.captured++
	p.Egress = egress.NewPod(p.workload, p.mesh.egress, p.mesh.log)
	p.take = make(chan func(outbound.Held), 1)
	p.Outbound = outbound.New(outbound.Config{
		Hold:         func(take func(outbound.Held)) error { p.take <- take; return nil },
		Listener:     listen(p.mesh, ":"+strconv.Itoa(int(p.captured))),
		Dialer:       p.Capture,
		TLS:          func(expected ...spiffe.ID) *tls.Config { return p.mesh.Certs.ClientConfig(p.ID, expected...) },
		Trust:        p.mesh.Certs,
		Source:       p.workload,
		Snapshot:     p.mesh.Store.Snapshot,
		Lookup:       p.mesh.Lookup,
		Local:        p.mesh,
		Egress:       p.Egress,
		Conns:        p.mesh.Conns,
		Relay:        p.mesh.Relay,
		Endpoints:    p.mesh.Endpoints,
		PoolMetrics:  p.mesh.poolMetrics,
		Share:        p.mesh.shares().Join(),
		Logger:       p.mesh.log,
		DrainTimeout: p.mesh.DrainTimeout,
	})
	p.StopOutbound = p.mesh.run(p.Name+" outbound", p.Outbound.Run)
}

func (p *Pod) want() {
	p.mesh.Certs.Want(p.ID)
	p.mesh.t.Cleanup(func() { p.mesh.Certs.Forget(p.ID) })
}

func (p *Pod) workload() *workload.Workload {
	w, _ := p.mesh.Store.Snapshot().WorkloadByUID(p.published.Uid)
	return w
}

// Listen listens on one of the pod's ports.
func (p *Pod) Listen(port uint16) *net.TCPListener {
	p.mesh.t.Helper()
	return listen(p.mesh, netip.AddrPortFrom(p.Addr, port).String())
}

func listen(m *Mesh, addr string) *net.TCPListener {
	m.t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// App runs the pod's application: serve, for each connection.
func (p *Pod) App(serve func(*net.TCPConn)) {
	p.mesh.t.Helper()
	l := p.Listen(AppPort)
	go func() {
		for {
			conn, err := l.AcceptTCP()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
}

// Connect opens a connection from the pod's application, which its outbound side
// captures, to the pod or service that has the address.
func (p *Pod) Connect(to netip.Addr) *net.TCPConn {
	p.mesh.t.Helper()
	return p.dial(netip.AddrPortFrom(to, p.captured))
}

// ConnectPlaintext opens a connection that no outbound side captures.
func (p *Pod) ConnectPlaintext(to netip.Addr) *net.TCPConn {
	p.mesh.t.Helper()
	return p.dial(netip.AddrPortFrom(to, PlaintextPort))
}

func (p *Pod) dial(dst netip.AddrPort) *net.TCPConn {
	p.mesh.t.Helper()
	conn, err := p.tryDial(dst)
	if err != nil {
		p.mesh.t.Fatal(err)
	}
	return conn
}

func (p *Pod) tryDial(dst netip.AddrPort) (*net.TCPConn, error) {
	conn, err := dialFrom(p.mesh.t.Context(), p.Addr, dst)
	if err != nil {
		return nil, err
	}
	p.mesh.t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	return conn, nil
}

// Refused connects as Connect does, and demands that the connection be reset
// before a byte arrives.
func (p *Pod) Refused(to netip.Addr) {
	p.mesh.t.Helper()
	p.refused(netip.AddrPortFrom(to, p.captured))
}

// RefusedPlaintext does so as ConnectPlaintext does.
func (p *Pod) RefusedPlaintext(to netip.Addr) {
	p.mesh.t.Helper()
	p.refused(netip.AddrPortFrom(to, PlaintextPort))
}

func (p *Pod) refused(dst netip.AddrPort) {
	p.mesh.t.Helper()
	n := 0
	// A reset may be so early that connecting itself tells.
	conn, err := p.tryDial(dst)
	if err == nil {
		n, err = conn.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		p.mesh.t.Fatalf("connection to %s: %d bytes, %v; want a reset", dst, n, err)
	}
}
