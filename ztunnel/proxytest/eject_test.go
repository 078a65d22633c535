package proxytest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/endpoints"
)

// ejectionTime is more than a first ejection lasts.
const ejectionTime = 31 * time.Second

// An endpoint whose application does not answer is left alone after a few
// connections that went to another one; none of them fails. When it is well
// again it takes part again.
func TestAFailingEndpointIsEjectedAndComesBack(t *testing.T) {
	m := New(t)
	client, down := m.Pod("client").Start(), m.Pod("down").Start()
	a, b := m.Pod("a").Start(), m.Pod("b").Start()
	echoing(a)
	echoing(b)
	m.Service("web", vip.String(), a, b, down)
	served := func(p *Pod) (n int) {
		for _, c := range m.Conns.Live() {
			if c.Direction == conns.Inbound && c.Destination.Addr.Addr() == p.Addr {
				n++
			}
		}
		return n
	}
	open := func(n int) (all []net.Conn) {
		for range n {
			conn := client.Connect(vip)
			say(t, conn, "hi")
			hear(t, conn, "hi")
			all = append(all, conn)
		}
		return all
	}

	// They stay open, so that the one that has none is in demand.
	open(40)
	if got := m.ejected(); got != 1 {
		t.Fatalf("%v endpoints are ejected: %+v", got, m.Endpoints.Statuses())
	}
	if got := m.retried(); got != endpoints.Threshold {
		t.Errorf("%v connections paid for it, want %d", got, endpoints.Threshold)
	}
	open(20)
	if got := m.retried(); got != endpoints.Threshold {
		t.Errorf("%v connections paid for it, the last ones after it was ejected", got)
	}

	// One connection finds that it is as it was.
	m.Advance(ejectionTime)
	open(20)
	if got := m.retried(); got != endpoints.Threshold+1 {
		t.Errorf("%v connections paid for it, want one more", got)
	}

	echoing(down)
	m.Advance(ejectionTime)
	open(5)
	if n := served(down); n != 0 {
		t.Errorf("the second ejection ended after the first's time: %d connections", n)
	}
	m.Advance(ejectionTime)
	open(20)
	if n := served(down); n < 10 {
		t.Errorf("%d of 20 connections for the one with the least load", n)
	}
	if got := m.ejected(); got != 0 {
		t.Errorf("%v endpoints are ejected still", got)
	}
}

// With every endpoint down, and half of them ejected, a connection still tries
// those that are left, and what comes back is found.
func TestAServiceThatIsDownComesBack(t *testing.T) {
	m := New(t)
	client, a, b := m.Pod("client").Start(), m.Pod("a").Start(), m.Pod("b").Start()
	m.Service("web", vip.String(), a, b)
	for range 3 * endpoints.Threshold {
		client.Refused(vip)
	}
	if got := m.ejected(); got != 1 {
		t.Errorf("%v of two endpoints are ejected", got)
	}
	echoing(a)
	echoing(b)
	conn := client.Connect(vip)
	say(t, conn, "hi")
	hear(t, conn, "hi")
}

// Where all endpoints of the client's node are ejected, the next node's are used.
func TestEjectionFailsOverToTheNextLocality(t *testing.T) {
	m := New(t)
	client, near, far := m.Pod("client", On("n1")).Start(), m.Pod("near", On("n1")).Start(), m.Pod("far", On("n2")).Start()
	echoing(far)
	m.Service("web", vip.String(), near, far)
	m.preferSameNode("web", vip.String())
	for range 2 * endpoints.Threshold {
		conn := client.Connect(vip)
		say(t, conn, "hi")
		hear(t, conn, "hi")
		conn.Close()
	}
	if got := m.retried(); got != endpoints.Threshold {
		t.Errorf("%v connections paid for the near one, want %d", got, endpoints.Threshold)
	}
	if got := m.picked("node"); got != endpoints.Threshold {
		t.Errorf("%v picks of the near one, want %d", got, endpoints.Threshold)
	}
	echoing(near)
	m.Advance(ejectionTime)
	conn := client.Connect(vip)
	say(t, conn, "hi")
	hear(t, conn, "hi")
	if got := m.picked("node"); got != endpoints.Threshold+1 {
		t.Errorf("%v picks of the near one: its time was over", got)
	}
}

// A denial, a certificate of our own that is missing, a connection that somebody
// else resets and a pod that is addressed itself do not count against an endpoint.
func TestWhatIsNotTheEndpointsFault(t *testing.T) {
	for name, c := range map[string]func(t *testing.T, m *Mesh, client, a *Pod){
		"policy": func(t *testing.T, m *Mesh, client, a *Pod) {
			m.SetPolicy(func(*conns.Attempt) bool { return false })
			client.Refused(vip)
		},
		"our own certificate": func(t *testing.T, m *Mesh, client, a *Pod) {
			for range 2 {
				m.Certs.Forget(client.ID)
			}
			client.Refused(vip)
		},
		"a reset later on": func(t *testing.T, m *Mesh, client, a *Pod) {
			conn := client.Connect(vip)
			say(t, conn, "?") // by then it stands
			hearReset(t, conn)
		},
		"the pod itself was addressed": func(t *testing.T, m *Mesh, client, a *Pod) {
			nobody := m.Pod("nobody")
			client.Refused(nobody.Addr)
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := New(t)
			client, a, b := m.Pod("client").Start(), m.Pod("a").Start(), m.Pod("b").Start()
			for _, p := range []*Pod{a, b} {
				p.App(func(c *net.TCPConn) { c.Read(make([]byte, 1)); c.SetLinger(0); c.Close() })
			}
			m.Service("web", vip.String(), a, b)
			c(t, m, client, a)
			for _, s := range m.Endpoints.Statuses() {
				if s.Failures != 0 {
					t.Errorf("blamed: %+v", s)
				}
			}
			m.wantNoLoad()
		})
	}
}

// However a connection ends, it is counted no longer.
func TestLoadIsGivenBack(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			m, client, server := way.make(t)
			vip := vip
			if m.IPv6 {
				vip = netip.MustParseAddr("fd96::1")
			}
			server.App(func(c *net.TCPConn) {
				b := make([]byte, 4)
				for n, err := c.Read(b); err == nil; n, err = c.Read(b) {
					c.Write(b[:n])
				}
				c.Close()
			})
			load := func() (n int) {
				for _, s := range m.Endpoints.Statuses() {
					n += s.Connections
				}
				return n
			}
			m.Service("web", vip.String(), server)
			open := func(to netip.Addr) *net.TCPConn {
				conn := client.Connect(to)
				say(t, conn, "x")
				hear(t, conn, "x")
				return conn
			}
			closed, reset, drained := open(server.Addr), open(vip), open(vip)
			if n := load(); n != 3 {
				t.Errorf("load %d with three connections: %+v", n, m.Endpoints.Statuses())
			}
			closed.Close()
			reset.SetLinger(0)
			reset.Close()
			client.StopOutbound()
			hearReset(t, drained)
			m.wantNoLoad()
		})
	}
}

// A connection that is cut while it is being established is no endpoint's fault.
func TestLoadIsGivenBackByWhatNeverWas(t *testing.T) {
	m := New(t)
	client, silent, other := m.Pod("client").Start(), m.Pod("silent"), m.Pod("other")
	// They take connections, and say nothing.
	silent.Listen(15008)
	other.Listen(15008)
	m.Service("web", vip.String(), silent, other)
	conn := client.Connect(vip)
	for deadline := time.Now().Add(5 * time.Second); len(client.Capture.Dialed()) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody is dialed")
		}
	}
	client.Outbound.Cut()
	hearReset(t, conn)
	m.wantNoLoad()
	for _, s := range m.Endpoints.Statuses() {
		t.Errorf("blamed: %+v", s)
	}
}

// An endpoint that takes connections and says nothing costs time, and is ejected.
func TestASilentEndpointIsEjected(t *testing.T) {
	m := New(t)
	client, silent, up := m.Pod("client").Start(), m.Pod("silent"), m.Pod("up").Start()
	silent.Listen(15008)
	echoing(up)
	m.Service("web", vip.String(), silent, up)
	// All at once: those that wait for it are its load, so the others go elsewhere.
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	done := make(chan error, 30)
	for range cap(done) {
		go func() {
			conn, err := dialFrom(ctx, client.Addr, netip.AddrPortFrom(vip, client.captured))
			if err == nil {
				t.Cleanup(func() { conn.Close() })
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				if _, err = conn.Write([]byte("x")); err == nil {
					_, err = conn.Read(make([]byte, 1))
				}
			}
			done <- err
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Errorf("a connection failed: %v", err)
		}
	}
	if got := m.ejected(); got != 1 {
		t.Fatalf("%v ejected: %+v", got, m.Endpoints.Statuses())
	}
}

func (m *Mesh) retried() float64 { return m.metric("ambit_connection_retries_total", "", "") }
func (m *Mesh) ejected() float64 { return m.metric("ambit_endpoints_ejected", "", "") }
func (m *Mesh) picked(locality string) float64 {
	return m.metric("ambit_endpoint_picks_total", "locality", locality)
}

// preferSameNode publishes a service that prefers endpoints of the client's node.
func (m *Mesh) preferSameNode(name, vip string) {
	m.t.Helper()
	s := m.service(name, vip)
	s.LoadBalancing = &api.LoadBalancing{Mode: api.LoadBalancing_FAILOVER, RoutingPreference: []api.LoadBalancing_Scope{api.LoadBalancing_NODE}}
	m.Publish(s)
}

// wantNoLoad waits until no connection is counted.
func (m *Mesh) wantNoLoad() {
	m.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		left := ""
		for _, s := range m.Endpoints.Statuses() {
			if s.Connections != 0 {
				left += fmt.Sprintf("%+v ", s)
			}
		}
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("load is left: %s", left)
		}
	}
}
