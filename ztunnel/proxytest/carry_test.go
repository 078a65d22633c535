package proxytest

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

func TestMain(m *testing.M) { Main(m) }

// ways are the ways from one pod to another, and what the source's side dials
// for them.
var ways = []struct {
	name string
	make func(*testing.T) (m *Mesh, client, server *Pod)
	port uint16
}{
	{"tunnel", func(t *testing.T) (*Mesh, *Pod, *Pod) {
		m := New(t)
		return m, m.Pod("client").Start(), m.Pod("server").Start()
	}, 15008},
	{"tunnel over IPv6", func(t *testing.T) (*Mesh, *Pod, *Pod) {
		m := New(t)
		m.IPv6 = true
		return m, m.Pod("client").Start(), m.Pod("server").Start()
	}, 15008},
	{"same node", func(t *testing.T) (*Mesh, *Pod, *Pod) {
		m := New(t)
		return m, m.Pod("client", On("n1")).Start(), m.Pod("server", On("n1")).Start()
	}, 0},
	{"plaintext", func(t *testing.T) (*Mesh, *Pod, *Pod) {
		m := New(t)
		return m, m.Pod("client").Start(), m.Pod("server", Plain)
	}, firstCaptured},
}

func overEveryWay(t *testing.T, test func(t *testing.T, m *Mesh, client, server *Pod)) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			m, client, server := way.make(t)
			test(t, m, client, server)
			for _, dst := range client.Capture.Dialed() {
				if dst.Port() != way.port {
					t.Errorf("the client's side dialed %s", dst)
				}
			}
			if dialed := client.Capture.Dialed(); (len(dialed) > 0) != (way.port != 0) {
				t.Errorf("the client's side dialed %v", dialed)
			}
		})
	}
}

func TestApplicationsTalkAndSeeEachOther(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		peers := make(chan net.Addr, 1)
		server.App(func(c *net.TCPConn) {
			peers <- c.RemoteAddr()
			io.Copy(c, c)
			c.Close()
		})
		conn := client.Connect(server.Addr)
		say(t, conn, "hello")
		hear(t, conn, "hello")
		conn.CloseWrite()
		hearEOF(t, conn)
		conn.Close()
		if seen := (<-peers).(*net.TCPAddr).AddrPort().Addr(); seen != client.Addr {
			t.Errorf("the server sees the client as %s, it is %s", seen, client.Addr)
		}
		if got := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != server.Addr {
			t.Errorf("the client sees the server as %s", got)
		}
	})
}

func TestServerSpeaksFirst(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		server.App(func(c *net.TCPConn) {
			c.Write([]byte("220 ready"))
			c.Close()
		})
		conn := client.Connect(server.Addr)
		hear(t, conn, "220 ready")
		hearEOF(t, conn)
	})
}

func TestServerStreamsOnAfterTheClientsLastByte(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		server.App(func(c *net.TCPConn) {
			all, _ := io.ReadAll(c)
			for range 5 {
				time.Sleep(10 * time.Millisecond)
				c.Write(all)
			}
			c.Close()
		})
		conn := client.Connect(server.Addr)
		say(t, conn, "tick")
		conn.CloseWrite()
		hear(t, conn, "tickticktickticktick")
		hearEOF(t, conn)
	})
}

func TestResetReachesTheOtherApplication(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		ended := make(chan error, 1)
		server.App(func(c *net.TCPConn) {
			if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
				t.Error(err)
			}
			c.Write([]byte("pong"))
			_, err := c.Read(make([]byte, 1))
			ended <- err
		})
		conn := client.Connect(server.Addr)
		say(t, conn, "ping")
		hear(t, conn, "pong")
		relay.Reset(conn)
		if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server's application reads %v, want a reset", err)
		}
	})
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		server.App(func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 4))
			relay.Reset(c)
		})
		conn := client.Connect(server.Addr)
		say(t, conn, "ping")
		hearReset(t, conn)
	})
}

func TestNobodyListens(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		client.Refused(server.Addr)
	})
}

func TestBulkArrivesWholeBothWays(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		server.App(func(c *net.TCPConn) {
			io.Copy(c, c)
			c.Close()
		})
		sent := make([]byte, 24<<20)
		rand.New(rand.NewSource(1)).Read(sent)
		conn := client.Connect(server.Addr)
		go func() {
			conn.Write(sent)
			conn.CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d of %d bytes came back: %v", len(got), len(sent), err)
		}
	})
}

// A reader that does not read stops its own writer, and nobody else's.
func TestOneStalledConnectionStopsNoOther(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		server.App(func(c *net.TCPConn) {
			first := make([]byte, 5)
			io.ReadFull(c, first)
			if string(first) == "stall" {
				t.Cleanup(func() { c.Close() }) // open and unread until then
				return
			}
			c.Write(first)
		})
		stalled := client.Connect(server.Addr)
		say(t, stalled, "stall")
		stalled.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := stalled.Write(make([]byte, 256<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("wrote %d bytes to who does not read: %v", n, err)
		}
		conn := client.Connect(server.Addr)
		say(t, conn, "fresh")
		hear(t, conn, "fresh")
		relay.Reset(stalled)
	})
}

// A thousand connections that end in every way leave nothing behind.
func TestNoDescriptorIsLeft(t *testing.T) {
	overEveryWay(t, func(t *testing.T, m *Mesh, client, server *Pod) {
		server.App(func(c *net.TCPConn) {
			b := make([]byte, 1)
			io.ReadFull(c, b)
			c.Write(b)
			switch b[0] % 4 {
			case 0:
				c.Close()
			case 1:
				relay.Reset(c)
			default:
				io.Copy(io.Discard, c)
				c.Close()
			}
		})
		one := func(i int) {
			conn, err := dialFrom(t.Context(), client.Addr, netip.AddrPortFrom(server.Addr, client.captured))
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.Write([]byte{byte(i)})
			conn.Read(make([]byte, 1))
			if i%8 == 3 {
				relay.Reset(conn)
			}
		}
		one(0)
		before := openFiles(t)
		var wg sync.WaitGroup
		for w := range 10 {
			wg.Go(func() {
				for i := range 100 {
					one(w + i)
				}
			})
		}
		wg.Wait()
		for deadline := time.Now().Add(5 * time.Second); openFiles(t) > before+10 || len(m.Conns.Live()) > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d descriptors are open, %d before; %d connections count as live", openFiles(t), before, len(m.Conns.Live()))
			}
		}
	})
}

// An application that connects to its own pod's address does so through no
// tunnel to itself.
func TestPodToItself(t *testing.T) {
	m := New(t)
	pod := m.Pod("lonely").Start()
	m.Service("me", "10.96.0.1", pod)
	pod.App(func(c *net.TCPConn) { io.Copy(c, c); c.Close() })
	conn := pod.Connect(netip.MustParseAddr("10.96.0.1"))
	say(t, conn, "echo")
	hear(t, conn, "echo")
	if dialed := pod.Capture.Dialed(); len(dialed) != 0 {
		t.Errorf("dialed %v", dialed)
	}
}

func TestManyConnectionsShareATunnel(t *testing.T) {
	m := New(t)
	client, server := m.Pod("client").Start(), m.Pod("server").Start()
	server.App(func(c *net.TCPConn) { io.Copy(c, c); c.Close() })
	var open []*net.TCPConn
	for range 60 {
		open = append(open, client.Connect(server.Addr))
	}
	for _, conn := range open {
		say(t, conn, "all")
		hear(t, conn, "all")
	}
	// The second is there for those that come after the first 32.
	if dialed := client.Capture.Dialed(); len(dialed) > 2 {
		t.Errorf("%d tunnels for %d connections", len(dialed), len(open))
	}
}

// Plain TCP to a captured pod passes, as long as policy is permissive.
func TestPlaintextClientOfACapturedPod(t *testing.T) {
	m := New(t)
	outsider, server := m.Pod("outsider", Plain), m.Pod("server").Start()
	peers := make(chan net.Addr, 1)
	server.App(func(c *net.TCPConn) {
		peers <- c.RemoteAddr()
		io.Copy(c, c)
		c.Close()
	})
	conn := outsider.ConnectPlaintext(server.Addr)
	say(t, conn, "hello")
	hear(t, conn, "hello")
	conn.Close()
	if seen := (<-peers).(*net.TCPAddr).AddrPort().Addr(); seen != outsider.Addr {
		t.Errorf("the server sees %s", seen)
	}
	line := m.Access(1)[0]
	if line["src.workload"] != "outsider" || line["src.identity"] != nil || line["transport"] != "plaintext" {
		t.Errorf("logged %v", line)
	}
}

// What comes back to the tunnel from the tunnel must not go round.
func TestLoopIsFound(t *testing.T) {
	m := New(t)
	outsider, server := m.Pod("outsider", Plain), m.Pod("server").Start()
	server.Capture.Looping.Store(true)
	outsider.RefusedPlaintext(server.Addr)
	time.Sleep(50 * time.Millisecond)
	var loops int
	lines := m.lines.access(t)
	for _, line := range lines {
		if line["reason"] == "Loop" {
			loops++
		}
	}
	if loops == 0 || len(lines) > 10 {
		t.Errorf("%d of %d connections were recognized as a loop", loops, len(lines))
	}
}

func say(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got[:n], err, want)
	}
}

func hearEOF(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes, %v; want the end of the data", n, err)
	}
}

func hearReset(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d bytes, %v; want a reset", n, err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
