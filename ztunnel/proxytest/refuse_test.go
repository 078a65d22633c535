package proxytest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// Whatever goes wrong with a tunnel, the connection is refused: its bytes take
// no other way.
func TestTunnelFailureIsNeverPlaintext(t *testing.T) {
	for _, c := range []struct {
		name, reason string
		breakIt      func(m *Mesh, server *Pod)
	}{
		{"nobody listens for tunnels", "ConnectFailed", func(*Mesh, *Pod) {}},
		{"the peer has another identity", "TLSFailed", func(m *Mesh, server *Pod) {
			impostor := spiffe.ID{TrustDomain: trustDomain, Namespace: "shop", ServiceAccount: "impostor"}
			m.Certs.Want(impostor)
			m.peer(server, m.Certs.ServerConfig(impostor))
		}},
		{"the peer's certificate is of another authority", "TLSFailed", func(m *Mesh, server *Pod) {
			other := New(m.t)
			m.peer(server, &tls.Config{
				Certificates: []tls.Certificate{other.CA.Issue(server.ID, time.Hour)},
				ClientAuth:   tls.RequestClientCert, NextProtos: []string{"h2"},
			})
		}},
		{"the peer does not speak TLS", "TLSFailed", func(m *Mesh, server *Pod) {
			l := server.Listen(15008)
			go func() {
				for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
					conn.Write([]byte("SSH-2.0-OpenSSH\r\n"))
				}
			}()
		}},
		{"the peer hangs up", "TLSFailed", func(m *Mesh, server *Pod) {
			l := server.Listen(15008)
			go func() {
				for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
					conn.Close()
				}
			}()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := New(t)
			client, server := m.Pod("client"), m.Pod("server")
			client.StartOutbound()
			var reached atomic.Bool
			server.App(func(*net.TCPConn) { reached.Store(true) })
			c.breakIt(m, server)
			client.Refused(server.Addr)
			if line := m.Access(1)[0]; line["reason"] != c.reason {
				t.Errorf("logged %v: %v, want %s", line["reason"], line["error"], c.reason)
			}
			if reached.Load() || slices.ContainsFunc(client.Capture.Dialed(), func(a netip.AddrPort) bool { return a.Port() != 15008 }) {
				t.Errorf("went on in plaintext: dialed %v", client.Capture.Dialed())
			}
		})
	}
}

// Without a certificate of its own a pod neither opens nor takes tunnels, and
// the log says on which side that was.
func TestNoCertificateOfItsOwn(t *testing.T) {
	for _, side := range []string{"outbound", "inbound"} {
		t.Run(side, func(t *testing.T) {
			m, client, server := ways[0].make(t)
			server.App(func(*net.TCPConn) { t.Error("the application was reached") })
			lacking := map[string]*Pod{"outbound": client, "inbound": server}[side]
			for range 2 { // each half of its proxy wants one
				m.Certs.Forget(lacking.ID)
			}
			client.Refused(server.Addr)
			want(t, m.ofDirection(side), map[string]any{"reason": "IdentityFailed", "response_flags": "IDENTITY_ERROR"})
		})
	}
}

// peer answers tunnels to the pod, and lets everything through that comes.
func (m *Mesh) peer(p *Pod, config *tls.Config) {
	l := p.Listen(15008)
	m.run(p.Name+" peer", func(ctx context.Context) error {
		context.AfterFunc(ctx, func() { l.Close() })
		for {
			conn, err := l.Accept()
			if err != nil {
				return nil
			}
			go hbone.Serve(ctx, tls.Server(conn, config), hbone.Options{DrainTimeout: -1}, func(_ context.Context, in *hbone.Incoming) {
				m.t.Error("a request reached a peer that is not the destination")
				in.Refuse(503, "")
			})
		}
	})
}

func TestDestinationOfThisNodeThatIsNotCaptured(t *testing.T) {
	m := New(t)
	client, server := m.Pod("client", On("n1")), m.Pod("server", On("n1"))
	client.StartOutbound()
	server.App(func(*net.TCPConn) { t.Error("the application was reached") })
	client.Refused(server.Addr)
	if line := m.Access(1)[0]; line["reason"] != "DeliveryFailed" {
		t.Errorf("logged %v", line)
	}
	if dialed := client.Capture.Dialed(); len(dialed) != 0 {
		t.Errorf("dialed %v", dialed)
	}
}

func TestServiceWithoutEndpoint(t *testing.T) {
	m := New(t)
	client := m.Pod("client").Start()
	m.Service("empty", "10.96.0.1")
	client.Refused(netip.MustParseAddr("10.96.0.1"))
	if line := m.Access(1)[0]; line["reason"] != "NoEndpoint" || line["response_flags"] != "CONNECT" {
		t.Errorf("logged %v", line)
	}
}

// One policy decides over every way in, by the identity that was proven there.
func TestPolicyDecidesOverEveryWayIn(t *testing.T) {
	for _, way := range ways[:3] {
		t.Run(way.name, func(t *testing.T) {
			m, client, server := way.make(t)
			asked := make(chan *conns.Attempt, 1)
			m.SetPolicy(func(c *conns.Attempt) bool { asked <- c; return false })
			server.App(func(*net.TCPConn) { t.Error("the application was reached") })
			client.Refused(server.Addr)
			c := <-asked
			if c.Source.Identity != client.ID || c.Source.Addr.Addr() != client.Addr || c.Destination.Addr.Addr() != server.Addr || c.Destination.Workload.Name != "server" {
				t.Errorf("policy was asked about %+v", c)
			}
			for _, line := range m.Access(2) {
				if line["reason"] != "PolicyDenied" || line["response_flags"] != "DENY" {
					t.Errorf("logged %v", line)
				}
			}
		})
	}
	t.Run("plaintext", func(t *testing.T) {
		m := New(t)
		outsider, server := m.Pod("outsider", Plain), m.Pod("server").Start()
		m.SetPolicy(func(c *conns.Attempt) bool { return !c.Source.Identity.IsZero() })
		server.App(func(*net.TCPConn) { t.Error("the application was reached") })
		outsider.RefusedPlaintext(server.Addr)
	})
}

// An address of the pods' range that is not known is asked for.
func TestUnknownAddressIsAskedFor(t *testing.T) {
	setUp := func(t *testing.T) (m *Mesh, client, server *Pod) {
		m = New(t)
		client = m.Pod("client").Start()
		server = m.Pod("server", On("n2"))
		server.App(func(c *net.TCPConn) { io.Copy(c, c); c.Close() })
		for _, rejection := range m.Store.Apply(deltaRemoving(server)) {
			t.Fatal(rejection)
		}
		return m, client, server
	}
	t.Run("it is of the mesh", func(t *testing.T) {
		m, client, server := setUp(t)
		server.StartInbound()
		m.SetLookup(func(_ context.Context, addr netip.Addr) (bool, error) {
			if addr != server.Addr {
				t.Errorf("asked for %s", addr)
			}
			m.Publish(server.published)
			return true, nil
		})
		conn := client.Connect(server.Addr)
		say(t, conn, "hi")
		hear(t, conn, "hi")
		if dialed := client.Capture.Dialed(); len(dialed) != 1 || dialed[0].Port() != 15008 {
			t.Errorf("dialed %v", dialed)
		}
	})
	t.Run("it is not", func(t *testing.T) {
		_, client, server := setUp(t)
		conn := client.Connect(server.Addr)
		say(t, conn, "hi")
		hear(t, conn, "hi")
		if dialed := client.Capture.Dialed(); len(dialed) != 1 || dialed[0].Port() == 15008 {
			t.Errorf("dialed %v", dialed)
		}
	})
	t.Run("nobody knows", func(t *testing.T) {
		m, client, server := setUp(t)
		m.SetLookup(func(ctx context.Context, _ netip.Addr) (bool, error) {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("asked without a deadline")
			}
			return false, errors.New("the controller is away")
		})
		client.Refused(server.Addr)
		if line := m.Access(1)[0]; line["reason"] != "UnknownDestination" {
			t.Errorf("logged %v", line)
		}
	})
}

// A Service that the node has not heard of is not outside of the mesh: rules of the node would lead what is sent there to a pod.
func TestUnknownServiceIsAskedFor(t *testing.T) {
	vip := netip.MustParseAddr("10.96.0.1")
	t.Run("it is of the mesh", func(t *testing.T) {
		m := New(t)
		addAddress(t, vip.String())
		client, server := m.Pod("client").Start(), m.Pod("server", On("n2")).Start()
		server.App(func(c *net.TCPConn) { io.Copy(c, c); c.Close() })
		m.SetLookup(func(_ context.Context, addr netip.Addr) (bool, error) {
			if addr != vip {
				t.Errorf("asked for %s", addr)
			}
			m.publishService("web", vip.String(), server)
			return true, nil
		})
		conn := client.Connect(vip)
		say(t, conn, "hi")
		hear(t, conn, "hi")
		if dialed := client.Capture.Dialed(); len(dialed) != 1 || dialed[0].Port() != 15008 {
			t.Errorf("dialed %v", dialed)
		}
	})
	t.Run("nobody knows", func(t *testing.T) {
		m := New(t)
		addAddress(t, vip.String())
		client := m.Pod("client").Start()
		m.SetLookup(func(context.Context, netip.Addr) (bool, error) { return false, errors.New("the controller is away") })
		client.Refused(vip)
		if line := m.Access(1)[0]; line["reason"] != "UnknownDestination" {
			t.Errorf("logged %v", line)
		}
		if dialed := client.Capture.Dialed(); len(dialed) > 0 {
			t.Errorf("dialed %v", dialed)
		}
	})
	// What is there is not of the mesh then, for all that anybody knows: a strict source does not go there.
	for _, mode := range []mesh.MutualTLS_Mode{mesh.MutualTLS_STRICT, mesh.MutualTLS_PERMISSIVE} {
		t.Run("it is not, and the source is "+mode.String(), func(t *testing.T) {
			m := New(t)
			addAddress(t, vip.String())
			l := listen(m, netip.AddrPortFrom(vip, AppPort).String())
			go func() {
				for c, err := l.Accept(); err == nil; c, err = l.Accept() {
					io.WriteString(c, "plaintext")
					c.Close()
				}
			}()
			client := m.Pod("client")
			client.mutualTLS(t, &mesh.MutualTLS{Mode: mode})
			client.StartOutbound()
			if mode == mesh.MutualTLS_PERMISSIVE {
				hear(t, client.Connect(vip), "plaintext")
				return
			}
			client.Refused(vip)
			if line := m.Access(1)[0]; line["reason"] != "StrictUnknown" {
				t.Errorf("logged %v", line)
			}
			if dialed := client.Capture.Dialed(); len(dialed) > 0 {
				t.Errorf("dialed %v", dialed)
			}
		})
	}
}

// A service's own identities are accepted besides its endpoints'.
func TestTunnelPeerMayHaveTheServicesIdentity(t *testing.T) {
	m := New(t)
	client, server := m.Pod("client").Start(), m.Pod("server").Start()
	server.App(func(c *net.TCPConn) { io.Copy(c, c); c.Close() })
	m.Service("web", "10.96.0.1", server)
	// The endpoint is published with another identity than its tunnel has.
	w := proto.Clone(server.published).(*api.Workload)
	w.ServiceAccount = "other"
	m.Publish(w)
	client.Refused(netip.MustParseAddr("10.96.0.1"))

	m.service("web", "10.96.0.1", server.ID.String())
	conn := client.Connect(netip.MustParseAddr("10.96.0.1"))
	say(t, conn, "hi")
	hear(t, conn, "hi")
}

func deltaRemoving(p *Pod) workload.Delta {
	return workload.Delta{Type: workload.AddressType, Removed: []string{p.published.Uid}}
}
