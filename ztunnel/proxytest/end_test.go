package proxytest

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
)

func echoing(p *Pod) {
	p.App(func(c *net.TCPConn) { io.Copy(c, c); c.Close() })
}

// The destination's node is upgraded: what is open lives on until the deadline,
// what is new goes to the successor.
func TestDrainingDestination(t *testing.T) {
	m, client, server := ways[0].make(t)
	echoing(server)
	old := client.Connect(server.Addr)
	say(t, old, "old")
	hear(t, old, "old")

	began := time.Now()
	stopped := make(chan struct{})
	stop, closeListeners := server.StopInbound, server.CloseInbound
	go func() { stop(); close(stopped) }()
	time.Sleep(100 * time.Millisecond) // until it has stopped accepting
	closeListeners()
	server.StartInbound()
	for range 5 {
		conn := client.Connect(server.Addr)
		say(t, conn, "new")
		hear(t, conn, "new")
		conn.Close()
	}
	say(t, old, "still")
	hear(t, old, "still")
	hearReset(t, old)
	<-stopped
	if lived := time.Since(began); lived < m.DrainTimeout {
		t.Errorf("the old connection was cut after %s of %s", lived, m.DrainTimeout)
	}
	if dialed := client.Capture.Dialed(); len(dialed) != 2 {
		t.Errorf("%d tunnels, want the old and a new one", len(dialed))
	}
}

func TestDrainEndsWithTheLastConnection(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		m.DrainTimeout = time.Minute
		again := m.Pod("again")
		again.StartOutbound()
		echoing(server)
		conn := again.Connect(server.Addr)
		say(t, conn, "x")
		hear(t, conn, "x")
		stopped := make(chan struct{})
		go func() { again.StopOutbound(); close(stopped) }()
		time.Sleep(100 * time.Millisecond)
		say(t, conn, "y")
		hear(t, conn, "y")
		select {
		case <-stopped:
			t.Fatal("did not wait for the open connection")
		default:
		}
		conn.CloseWrite()
		hearEOF(t, conn)
		<-stopped
		// The way's own client is to have been used like all others.
		last := client.Connect(server.Addr)
		say(t, last, "z")
		hear(t, last, "z")
		last.Close()
	})
}

func TestDeadlineCutsWhatIsStillOpen(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		echoing(server)
		conn := client.Connect(server.Addr)
		say(t, conn, "x")
		hear(t, conn, "x")
		client.StopOutbound()
		hearReset(t, conn)
		if line := m.ofDirection("outbound"); line["reason"] != "Drained" {
			t.Errorf("logged %v", line)
		}
	})
}

func TestDestinationOfTheSameNodeDrains(t *testing.T) {
	m, client, server := ways[2].make(t)
	echoing(server)
	conn := client.Connect(server.Addr)
	say(t, conn, "x")
	hear(t, conn, "x")
	server.StopInbound()
	hearReset(t, conn)
	for _, line := range m.Access(2) {
		if r := line["reason"]; r != "Drained" && r != "CutByDestination" {
			t.Errorf("logged %v", line)
		}
	}
	client.Refused(server.Addr)
}

func TestCuttingNow(t *testing.T) {
	m, _, server := ways[0].make(t)
	m.DrainTimeout = time.Minute
	late := m.Pod("late")
	late.StartOutbound()
	echoing(server)
	conn := late.Connect(server.Addr)
	say(t, conn, "x")
	hear(t, conn, "x")
	time.AfterFunc(100*time.Millisecond, late.Outbound.Cut)
	late.StopOutbound()
	hearReset(t, conn)
}

// Policy may change its mind about one connection, and about that one only.
func TestOneLiveConnectionIsCut(t *testing.T) {
	for _, way := range ways[:3] {
		t.Run(way.name, func(t *testing.T) {
			m, client, server := way.make(t)
			echoing(server)
			var kept, denied *net.TCPConn
			for _, conn := range []**net.TCPConn{&kept, &denied} {
				*conn = client.Connect(server.Addr)
				say(t, *conn, "x")
				hear(t, *conn, "x")
			}
			var last *conns.Conn
			for _, c := range m.Conns.Live() {
				if c.Direction == conns.Inbound {
					last = c
				}
			}
			last.Cut(conns.PolicyDenied, errors.New("policy has changed"))
			hearReset(t, denied)
			line := m.ofDirection("inbound")
			if line["reason"] != "PolicyDenied" || line["error"] != "policy has changed" {
				t.Errorf("logged %v", line)
			}
			say(t, kept, "y")
			hear(t, kept, "y")
		})
	}
}

func TestBothSidesRecordTheConnection(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		server.App(func(c *net.TCPConn) {
			io.Copy(io.Discard, c)
			c.Write([]byte("thank you"))
			c.Close()
		})
		conn := client.Connect(server.Addr)
		say(t, conn, "a question")
		conn.CloseWrite()
		hear(t, conn, "thank you")
		hearEOF(t, conn)
		conn.Close()

		tunnelled := server.Inbound != nil
		n := 1
		if tunnelled {
			n = 2
		}
		m.Access(n)
		out := m.ofDirection("outbound")
		want(t, out, map[string]any{
			"reason": "Closed", "response_flags": "-", "error": nil,
			"bytes_sent": 10.0, "bytes_recv": 9.0,
			"src.addr": conn.LocalAddr().String(), "src.workload": "client", "src.namespace": "shop", "src.identity": client.ID.String(),
			"dst.workload": "server",
		})
		if !tunnelled {
			want(t, out, map[string]any{"dst.identity": nil, "transport": "plaintext", "dst.hbone_addr": nil})
			return
		}
		want(t, out, map[string]any{"dst.identity": server.ID.String()})
		want(t, m.ofDirection("inbound"), map[string]any{
			"reason": "Closed", "bytes_sent": 9.0, "bytes_recv": 10.0, "transport": out["transport"],
			"src.workload": "client", "src.identity": client.ID.String(),
			"dst.workload": "server", "dst.identity": server.ID.String(), "dst.hbone_addr": out["dst.hbone_addr"], "dst.addr": out["dst.addr"],
		})
	})
}

// Bytes are in the metrics while the connection lives, on both sides alike.
func TestMetricsOfALiveConnection(t *testing.T) {
	for _, way := range ways[:3] {
		t.Run(way.name, func(t *testing.T) {
			m, client, server := way.make(t)
			echoing(server)
			conn := client.Connect(server.Addr)
			say(t, conn, "12345")
			hear(t, conn, "12345")
			// A byte is counted once it was passed on, so a moment later.
			for _, reporter := range []string{"source", "destination"} {
				for name, value := range map[string]float64{
					"istio_tcp_connections_opened_total": 1, "istio_tcp_connections_closed_total": 0,
					"istio_tcp_received_bytes_total": 5, "istio_tcp_sent_bytes_total": 5,
				} {
					m.await(name+" of the "+reporter, func() bool { return m.metric(name, "reporter", reporter) == value })
				}
			}
			live := m.Conns.Live()
			if len(live) != 2 {
				t.Fatalf("%d live connections", len(live))
			}
			for _, c := range live {
				if up, down := c.Bytes(); up != 5 || down != 5 {
					t.Errorf("%s: %d and %d bytes", c.Direction, up, down)
				}
			}
		})
	}
}

// ofDirection waits for the first line of a direction.
func (m *Mesh) ofDirection(direction string) map[string]any {
	m.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, line := range m.lines.access(m.t) {
			if line["direction"] == direction {
				return line
			}
		}
	}
	m.t.Fatalf("no %s connection in the access log", direction)
	return nil
}

func (m *Mesh) await(what string, done func() bool) {
	m.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("never: %s", what)
		}
	}
}

// metric sums a metric, gauge or counter, over the series whose label has the
// value; over all with label "".
func (m *Mesh) metric(name, label, value string) (sum float64) {
	m.t.Helper()
	families, err := m.Metrics.Gather()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, metric := range family.GetMetric() {
			matches := label == ""
			for _, l := range metric.GetLabel() {
				matches = matches || l.GetName() == label && l.GetValue() == value
			}
			if matches {
				sum += metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func want(t *testing.T, line, want map[string]any) {
	t.Helper()
	for key, value := range want {
		if line[key] != value {
			t.Errorf("%s: %s is %v, want %v", line["direction"], key, line[key], value)
		}
	}
}
