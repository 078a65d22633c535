package proxytest

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/ambit-mesh/ambit/internal/conns"
)

// An answer is what a held connection's application is told.
type answer struct {
	passed  bool
	refused syscall.Errno // or neither: nothing
}

// heldConn is a connection that the kernel holds.
type heldConn struct {
	client, dst netip.AddrPort
	once        sync.Once
	answered    chan answer
}

func (h *heldConn) Ends() (client, dst netip.AddrPort) { return h.client, h.dst }

func (h *heldConn) Pass() error { return h.answer(answer{passed: true}) }
func (h *heldConn) Leave()      { h.answer(answer{}) }

func (h *heldConn) Refuse(errno syscall.Errno) error { return h.answer(answer{refused: errno}) }

func (h *heldConn) answer(a answer) error {
	h.once.Do(func() { h.answered <- a })
	return nil
}

// hold has a connection held that the pod opens.
func (p *Pod) hold(take func(*heldConn), port uint16, to netip.Addr) *heldConn {
	h := &heldConn{
		client: netip.AddrPortFrom(p.Addr, port), dst: netip.AddrPortFrom(to, p.captured), answered: make(chan answer, 1),
	}
	take(h)
	return h
}

// taker waits until the pod's outbound side holds.
func (p *Pod) taker() func(*heldConn) {
	take := <-p.take
	return func(h *heldConn) { take(h) }
}

// goOn is what the kernel does with a connection that was passed.
func (p *Pod) goOn(t *testing.T, h *heldConn) *net.TCPConn {
	t.Helper()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(h.client)}
	conn, err := d.DialContext(t.Context(), "tcp", h.dst.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

const firstHeldPort = 20000

// heldPort is the next port that no connection has used: the last one's may be in TIME_WAIT.
var heldPort atomic.Int32

func nextPort() uint16 { return uint16(firstHeldPort - heldPort.Add(1)) }

// A connection is passed when its upstream stands, and carried by that.
func TestHeldConnectionIsPassedWhenItsUpstreamStands(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		var accepted atomic.Int32
		server.App(func(c *net.TCPConn) {
			accepted.Add(1)
			c.Write([]byte("220 ready"))
			io.Copy(c, c)
			c.Close()
		})
		take := client.taker()
		h := client.hold(take, nextPort(), server.Addr)
		if a := <-h.answered; !a.passed {
			t.Fatalf("answered %+v", a)
		}
		m.await("the server accepted", func() bool { return accepted.Load() == 1 })
		conn := client.goOn(t, h)
		hear(t, conn, "220 ready")
		say(t, conn, "hello")
		hear(t, conn, "hello")
		// A SYN that was repeated just before is passed too, for the kernel to see that it is late.
		if a := <-client.hold(take, h.client.Port(), server.Addr).answered; !a.passed {
			t.Errorf("a late repetition is answered %+v", a)
		}
		conn.CloseWrite()
		hearEOF(t, conn)
		if n := accepted.Load(); n != 1 {
			t.Errorf("the server accepted %d connections", n)
		}
		if line := m.ofDirection("outbound"); line["src.addr"] != h.client.String() || line["reason"] != "Closed" {
			t.Errorf("logged %v", line)
		}
	})
}

// A connection is refused with what its upstream failed with.
func TestHeldConnectionIsRefused(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		h := client.hold(client.taker(), nextPort(), server.Addr)
		if a := <-h.answered; a.refused != syscall.ECONNREFUSED {
			t.Errorf("answered %+v, want connection refused", a)
		}
	})
	t.Run("by policy", func(t *testing.T) {
		m, client, server := ways[0].make(t)
		m.SetPolicy(func(*conns.Attempt) bool { return false })
		echoing(server)
		h := client.hold(client.taker(), nextPort(), server.Addr)
		if a := <-h.answered; a.refused != syscall.ECONNREFUSED {
			t.Errorf("answered %+v, want connection refused", a)
		}
	})
}

// An application that has given up leaves nothing behind.
func TestUnclaimedUpstreamIsClosed(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		ended := make(chan error, 1)
		server.App(func(c *net.TCPConn) {
			_, err := io.Copy(io.Discard, c)
			ended <- err
		})
		h := client.hold(client.taker(), nextPort(), server.Addr)
		if a := <-h.answered; !a.passed {
			t.Fatalf("answered %+v", a)
		}
		if err := <-ended; err == nil {
			t.Error("the server saw an end in order")
		}
		if line := m.ofDirection("outbound"); line["reason"] != "Unclaimed" {
			t.Errorf("logged %v", line)
		}
		m.await("nothing is live", func() bool { return len(m.Conns.Live()) == 0 })
		// Nor does it stand in the way of the next.
		conn := client.Connect(server.Addr)
		conn.CloseWrite()
		<-ended
	})
}

// Holding may end while an upstream is being established: the connection comes then, and waits for it.
func TestConnectionThatComesEarly(t *testing.T) {
	for _, refused := range []bool{false, true} {
		t.Run(fmt.Sprintf("refused: %v", refused), func(t *testing.T) {
			m, client, server := ways[0].make(t)
			echoing(server)
			deciding, decide := make(chan struct{}), make(chan struct{})
			// A connection that is not accepted before its upstream was refused has policy asked once more.
			asked := sync.OnceFunc(func() { close(deciding) })
			m.SetPolicy(func(*conns.Attempt) bool { asked(); <-decide; return !refused })
			h := client.hold(client.taker(), nextPort(), server.Addr)
			<-deciding
			h.Pass() // as redirect does when it lets a pod go
			conn := client.goOn(t, h)
			say(t, conn, "early")
			close(decide)
			if refused {
				hearReset(t, conn)
				return
			}
			hear(t, conn, "early")
		})
	}
}

// However many connections a pod opens, what is done for it is bounded; what the end finds undone is left to the next process.
func TestHoldingIsBounded(t *testing.T) {
	const flood, limit = 10000, 8192
	m, client, server := ways[2].make(t)
	var asked atomic.Int32
	decide := make(chan struct{})
	m.SetPolicy(func(*conns.Attempt) bool { asked.Add(1); <-decide; return true })
	take := client.taker()
	var all []*heldConn
	for i := range flood {
		all = append(all, client.hold(take, uint16(firstHeldPort+i), server.Addr))
	}
	left := 0
	for _, h := range all {
		select {
		case a := <-h.answered:
			if a != (answer{}) {
				t.Fatalf("answered %+v", a)
			}
			left++
		default:
		}
	}
	if left != flood-limit {
		t.Errorf("of %d connections %d were left, want %d", flood, left, flood-limit)
	}
	m.await("all others are being decided", func() bool { return asked.Load() == limit })
	client.Outbound.StopAccepting()
	close(decide)
	for _, h := range all[:limit] {
		if a := <-h.answered; a != (answer{}) {
			t.Fatalf("answered %+v at the end", a)
		}
	}
	late := client.hold(take, firstHeldPort, server.Addr)
	if a := <-late.answered; a != (answer{}) {
		t.Errorf("answered %+v after the end", a)
	}
}
