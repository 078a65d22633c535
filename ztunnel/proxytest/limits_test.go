package proxytest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

// intruder is a pod of the mesh that holds to no rules of ours.
type intruder struct {
	*Pod
	config *tls.Config
}

func (m *Mesh) intruder(name string) *intruder {
	p := m.Pod(name)
	return &intruder{p, &tls.Config{Certificates: []tls.Certificate{m.CA.Issue(p.ID, time.Hour)}, InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
}

// as another identity.
func (i *intruder) as(account string) *intruder {
	id := spiffe.ID{TrustDomain: trustDomain, Namespace: "shop", ServiceAccount: account}
	return &intruder{i.Pod, &tls.Config{Certificates: []tls.Certificate{i.mesh.CA.Issue(id, time.Hour)}, InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
}

// raw opens a TCP connection to the server's tunnel port, and says nothing.
func (i *intruder) raw(server *Pod) *net.TCPConn {
	i.mesh.t.Helper()
	return i.dial(netip.AddrPortFrom(server.Addr, 15008))
}

// tunnel opens a tunnel, which may be refused at once or later.
func (i *intruder) tunnel(server *Pod) (*hbone.Client, error) {
	raw, err := i.tryDial(netip.AddrPortFrom(server.Addr, 15008))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn := tls.Client(raw, i.config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Time{})
	client, err := hbone.NewClient(conn, hbone.Options{})
	if err == nil {
		i.mesh.t.Cleanup(func() { client.Close() })
	}
	return client, err
}

// asks opens a connection to the server's application through a tunnel.
func asks(client *hbone.Client, server *Pod) (hbone.Stream, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return client.Open(ctx, hbone.Request{Authority: netip.AddrPortFrom(server.Addr, AppPort)})
}

// served tells whether a tunnel of its own gets the intruder to the application.
func (i *intruder) served(server *Pod) error {
	client, err := i.tunnel(server)
	if err != nil {
		return err
	}
	stream, err := asks(client, server)
	if err != nil {
		return err
	}
	return stream.Close()
}

func (m *Mesh) counted(reason string) float64 {
	m.t.Helper()
	families, err := m.Metrics.Gather()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != "ambit_hbone_refused_total" {
			continue
		}
		for _, metric := range family.Metric {
			if metric.Label[0].GetValue() == reason {
				return metric.Counter.GetValue()
			}
		}
	}
	return 0
}

// awaitCounted waits until at least n refusals have been counted.
func (m *Mesh) awaitCounted(reason string, n float64) {
	m.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); m.counted(reason) < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("%v counted as %s, want %v", m.counted(reason), reason, n)
		}
	}
}

// TestSlowHandshakesKeepNobodyOut: who opens tunnels and never says who he is has
// no more of them than there is room for, and makes room for everybody else.
func TestSlowHandshakesKeepNobodyOut(t *testing.T) {
	m := New(t)
	m.Limits = accept.Limits{HandshakesPerAddress: 100, Handshakes: 20}
	client, server := m.Pod("client"), m.Pod("server")
	server.StartInbound()
	client.StartOutbound()
	echoing(server)
	slow := m.intruder("slow")
	ended := make(chan struct{}, 100)
	for range 100 {
		conn := slow.raw(server)
		conn.Write([]byte{22, 3, 1, 0, 200, 1}) // the beginning of a handshake
		go func() {
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				ended <- struct{}{}
			}
		}()
	}
	for range 80 {
		select {
		case <-ended:
		case <-time.After(5 * time.Second): // half of what a handshake may take
			t.Fatalf("of 100 tunnels that do not begin, %v were refused", m.counted("TooManyHandshakes"))
		}
	}
	conn := client.Connect(server.Addr)
	say(t, conn, "hello")
	hear(t, conn, "hello")
	m.awaitCounted("TooManyHandshakes", 81)
}

// TestTunnelsOfOnePeerAreBounded, by its address and by its identity, and others
// have theirs nevertheless.
func TestTunnelsOfOnePeerAreBounded(t *testing.T) {
	t.Run("address", func(t *testing.T) {
		m := New(t)
		m.Limits = accept.Limits{TunnelsPerAddress: 3}
		server := m.Pod("server")
		server.StartInbound()
		echoing(server)
		greedy := m.intruder("greedy")
		var first *hbone.Client
		for i := range 3 {
			client, err := greedy.as(fmt.Sprint("identity", i)).tunnel(server)
			if err != nil {
				t.Fatal(err)
			}
			first = client
		}
		if err := greedy.served(server); err == nil {
			t.Error("a fourth tunnel was served")
		}
		m.awaitCounted("TooManyTunnels", 1)
		if err := m.intruder("other").served(server); err != nil {
			t.Errorf("another address: %v", err)
		}
		first.Close()
		eventually(t, func() error { return greedy.served(server) })
	})
	t.Run("identity", func(t *testing.T) {
		m := New(t)
		m.Limits = accept.Limits{TunnelsPerIdentity: 3}
		server := m.Pod("server")
		server.StartInbound()
		echoing(server)
		var last *intruder
		for i := range 3 {
			last = m.intruder(fmt.Sprint("replica", i)).as("greedy")
			if _, err := last.tunnel(server); err != nil {
				t.Fatal(err)
			}
		}
		for _, i := range []*intruder{last, m.intruder("replica4").as("greedy")} {
			client, err := i.tunnel(server)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := asks(client, server); !errors.Is(err, hbone.ErrNotProcessed) && !errors.Is(err, hbone.ErrTunnelClosed) {
				t.Errorf("a fourth tunnel: %v, want one that was turned away", err)
			}
		}
		m.awaitCounted("TooManyTunnels", 2)
		if err := last.as("modest").served(server); err != nil {
			t.Errorf("another identity at the same address: %v", err)
		}
	})
}

// TestConnectionsOfOnePeerAreBounded, through however many tunnels.
func TestConnectionsOfOnePeerAreBounded(t *testing.T) {
	for name, limits := range map[string]accept.Limits{
		"address": {ConnectionsPerAddress: 4}, "identity": {ConnectionsPerIdentity: 4},
	} {
		t.Run(name, func(t *testing.T) {
			m := New(t)
			m.Limits = limits
			server := m.Pod("server")
			server.StartInbound()
			echoing(server)
			greedy := m.intruder("greedy")
			var streams []hbone.Stream
			var clients []*hbone.Client
			for range 2 {
				client, err := greedy.tunnel(server)
				if err != nil {
					t.Fatal(err)
				}
				clients = append(clients, client)
				for range 2 {
					stream, err := asks(client, server)
					if err != nil {
						t.Fatal(err)
					}
					streams = append(streams, stream)
				}
			}
			_, err := asks(clients[0], server)
			if refusal, ok := errors.AsType[*hbone.StatusError](err); !ok || refusal.Code != 503 || refusal.Reason != "TooManyConnections" {
				t.Errorf("a fifth connection: %v", err)
			}
			if err := m.intruder("other").served(server); err != nil {
				t.Errorf("another peer: %v", err)
			}
			streams[0].Close()
			eventually(t, func() error {
				stream, err := asks(clients[1], server)
				if err == nil {
					stream.Close()
				}
				return err
			})
		})
	}
}

// TestGreedyPodLeavesTheOthersTheirShare: one pod that opens connections without
// end, held or not, tunnelled or not, does not keep another from opening some.
func TestGreedyPodLeavesTheOthersTheirShare(t *testing.T) {
	m := New(t)
	m.Capacity = 80 * conns.FilesAtMost
	greedy, modest, server := m.Pod("greedy"), m.Pod("modest"), m.Pod("server", Plain)
	greedy.StartOutbound()
	modest.StartOutbound()
	echoing(server)
	refused := 0
	for range 100 {
		if !echoesOne(greedy.tryDial(netip.AddrPortFrom(server.Addr, greedy.captured))) {
			refused++
		}
	}
	if refused == 0 {
		t.Error("one pod was carried a hundred connections, of the eighty that there are")
	}
	for range 5 {
		conn := modest.Connect(server.Addr)
		say(t, conn, "hello")
		hear(t, conn, "hello")
	}
	want(t, m.ofDirection("outbound"), map[string]any{"reason": "Overloaded"})
}

// TestPlaintextShares: connections that come without a tunnel count as well.
func TestPlaintextShares(t *testing.T) {
	m := New(t)
	m.Capacity = 40 * conns.FilesAtMost
	client, server, other := m.Pod("client"), m.Pod("server"), m.Pod("other")
	server.StartInbound()
	other.StartInbound()
	echoing(server)
	echoing(other)
	refused := 0
	for range 60 {
		if !echoesOne(client.tryDial(netip.AddrPortFrom(server.Addr, PlaintextPort))) {
			refused++
		}
	}
	if refused == 0 {
		t.Error("sixty connections were carried, of forty that there are")
	}
	conn := client.ConnectPlaintext(other.Addr)
	say(t, conn, "hello")
	hear(t, conn, "hello")
}

// echoesOne tells whether a connection that was tried is carried.
func echoesOne(conn *net.TCPConn, err error) bool {
	if err != nil {
		return false
	}
	conn.Write([]byte("x"))
	_, err = conn.Read(make([]byte, 1))
	return err == nil
}

// TestFloodIsCountedAndLogged by the same word.
func TestFloodIsCountedAndLogged(t *testing.T) {
	m := New(t)
	server := m.Pod("server")
	server.StartInbound()
	hostile := m.intruder("hostile")
	raw := hostile.raw(server)
	conn := tls.Client(raw, hostile.config)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, conn)
	io.WriteString(conn, http2.ClientPreface)
	f := http2.NewFramer(conn, nil)
	f.WriteSettings()
	for range 5000 {
		if f.WritePing(true, [8]byte{}) != nil {
			break
		}
	}
	m.awaitCounted("PingFlood", 1)
	line := m.logged("tunnel ended")
	want(t, line, map[string]any{"reason": "PingFlood", "src.identity": hostile.ID.String(), "level": "WARN"})
}

// TestRefusalsInAFloodAreNotAllLogged, but counted, and the log says that some are missing.
func TestRefusalsInAFloodAreNotAllLogged(t *testing.T) {
	m := New(t)
	m.Limits = accept.Limits{TunnelsPerAddress: 1}
	server := m.Pod("server")
	server.StartInbound()
	greedy := m.intruder("greedy")
	if _, err := greedy.tunnel(server); err != nil {
		t.Fatal(err)
	}
	const n = 1500
	for range n {
		if conn, err := greedy.tryDial(netip.AddrPortFrom(server.Addr, 15008)); err == nil {
			conn.Close()
		}
	}
	m.awaitCounted("TooManyTunnels", n)
	if lines := len(m.lines.access(t)); lines < 500 || lines > 1000 {
		t.Errorf("%d lines in the log, of %d refusals", lines, n)
	}
	if err := m.intruder("other").raw(server).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error { // another's failure is logged all the same
		for _, line := range m.lines.access(t) {
			if line["reason"] == "TLSFailed" {
				return nil
			}
		}
		return errors.New("the failure of another client is not in the log")
	})
}

// TestBurstsAreNotRefused: a thousand connections at once, and hundreds of tunnels
// at once, as load generators and proxies with many threads open them. On a machine that
// has more to do than it can some take too long, and come again; refused is none.
func TestBurstsAreNotRefused(t *testing.T) {
	m := New(t)
	client, server := m.Pod("client"), m.Pod("server")
	client.StartOutbound()
	server.StartInbound()
	echoing(server)
	many := m.intruder("many")
	var group sync.WaitGroup
	failed := make(chan error, 1300)
	end := time.Now().Add(2 * time.Minute)
	until := func(done func() error) {
		group.Go(func() {
			err := done()
			for ; err != nil && time.Now().Before(end); err = done() {
			}
			if err != nil {
				failed <- err
			}
		})
	}
	for range 1000 {
		until(func() error {
			conn, err := client.tryDial(netip.AddrPortFrom(server.Addr, client.captured))
			if err != nil {
				return err
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(30 * time.Second))
			conn.Write([]byte("x"))
			_, err = conn.Read(make([]byte, 1))
			return err
		})
	}
	for range 300 {
		until(func() error { _, err := many.tunnel(server); return err })
	}
	group.Wait()
	close(failed)
	n := 0
	for err := range failed {
		if n++; n < 5 {
			t.Error(err)
		}
	}
	if n > 0 {
		t.Errorf("%d of 1300 failed", n)
	}
	for reason, times := range m.endings() {
		switch conns.Reason(reason) {
		case conns.Closed, conns.Drained:
		case conns.ConnectFailed, conns.TunnelFailed, conns.TunnelLost, conns.TLSFailed, conns.Reason(relay.ClientReset), conns.Reason(hbone.SlowPreface), conns.Reason(hbone.PeerSilent):
			// Too late, which is nobody's refusal.
		default:
			t.Errorf("%v ended as %s", times, reason)
		}
	}
	eventually(t, func() error {
		if held := m.shares().Held(); held > 0 {
			return fmt.Errorf("%d connections are counted that are over", held)
		}
		return nil
	})
}

// endings are all that connections and tunnels ended for, or were refused.
func (m *Mesh) endings() map[string]float64 {
	m.t.Helper()
	families, err := m.Metrics.Gather()
	if err != nil {
		m.t.Fatal(err)
	}
	all := map[string]float64{}
	for _, family := range families {
		if name := family.GetName(); name != "ambit_hbone_refused_total" && name != "ambit_connection_ends_total" {
			continue
		}
		for _, metric := range family.Metric {
			for _, label := range metric.Label {
				if label.GetName() == "reason" {
					all[label.GetValue()] += metric.Counter.GetValue()
				}
			}
		}
	}
	return all
}

// TestWhatEndsIsNotCountedAnyMore, however it ends.
func TestWhatEndsIsNotCountedAnyMore(t *testing.T) {
	m := New(t)
	client, server := m.Pod("client").Start(), m.Pod("server").Start()
	local, gone := m.Pod("local", On("node-of-client")).Start(), m.Pod("gone")
	echoing(server)
	echoing(local)
	for _, to := range []*Pod{server, local} {
		for range 3 {
			conn := client.Connect(to.Addr)
			say(t, conn, "x")
			hear(t, conn, "x")
			conn.Close()
		}
		conn := client.Connect(to.Addr)
		say(t, conn, "x")
		hear(t, conn, "x")
		relay.Reset(conn)
		conn = client.ConnectPlaintext(to.Addr)
		say(t, conn, "x")
		hear(t, conn, "x")
		conn.Close()
	}
	client.Refused(gone.Addr)
	m.SetPolicy(func(*conns.Attempt) bool { return false })
	client.Refused(server.Addr)
	client.RefusedPlaintext(server.Addr)
	eventually(t, func() error {
		if held := m.shares().Held(); held != 0 {
			return fmt.Errorf("%d connections are counted, none is there", held)
		}
		return nil
	})
}

// eventually tries for a while.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = try(); err == nil {
			return
		}
	}
	t.Error(err)
}

// logged waits for a line of the log.
func (m *Mesh) logged(message string) map[string]any {
	m.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if line := m.lines.first(m.t, message); line != nil {
			return line
		}
	}
	m.t.Fatalf("nothing logged as %q", message)
	return nil
}
