package load_test

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l4/load"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

func TestMain(m *testing.M) {
	if role := process.Role(); role != "" {
		load.Run(role)
		return
	}
	netnstest.Main(m, nil)
}

// stage is a server and a client in one pod.
type stage struct {
	app    load.App
	client load.Generator
	pod    *netnstest.NetNS
	server netip.AddrPort
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{pod: netnstest.NewNetNS(t), server: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), load.AppPort)}
	var err error
	dir := t.TempDir()
	if s.app, err = load.StartApp(process.In(s.pod.NetNS), dir, "app"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.app.Stop() })
	if s.client, err = load.StartGenerator(process.In(s.pod.NetNS), dir, "client"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.client.Stop() })
	return s
}

// run lets a load run for a while between two marks.
func (s *stage) run(t *testing.T, kind load.Kind, to netip.AddrPort, n int) (int64, load.Latencies, error) {
	t.Helper()
	if err := s.client.Start(kind, to, n); err != nil {
		t.Fatal(err)
	}
	before, err := s.client.Mark()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	after, _ := s.client.Mark()
	latencies, err := s.client.StopLoad()
	return after - before, latencies, err
}

func TestBulkIsCountedWhereItArrives(t *testing.T) {
	s := newStage(t)
	if _, _, err := s.run(t, load.Bulk, s.server, 3); err != nil {
		t.Fatal(err)
	}
	if received, err := s.app.Received(); err != nil || received < 1<<20 {
		t.Errorf("%d bytes have arrived in 100 ms, %v", received, err)
	}
}

func TestRoundTripsAreTimed(t *testing.T) {
	s := newStage(t)
	_, l, err := s.run(t, load.Ping, s.server, 2)
	if err != nil {
		t.Fatal(err)
	}
	if l.Samples < 10 || l.P50 <= 0 || l.P50 > l.P99 || l.P99 > l.P999 {
		t.Errorf("got %+v", l)
	}
}

func TestConnectionsAreCounted(t *testing.T) {
	s := newStage(t)
	if n, _, err := s.run(t, load.Churn, s.server, 4); err != nil || n < 10 {
		t.Errorf("%d connections in 100 ms, %v", n, err)
	}
}

func TestOneLoadAtATime(t *testing.T) {
	s := newStage(t)
	if _, err := s.client.StopLoad(); err == nil {
		t.Error("no load was stopped")
	}
	if err := s.client.Start(load.Idle, s.server, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.client.Start(load.Ping, s.server, 1); err == nil {
		t.Error("a second load was started")
	}
	if _, err := s.client.StopLoad(); err != nil {
		t.Error(err)
	}
}

func TestNobodyThereIsAnError(t *testing.T) {
	s := newStage(t)
	nobody := netip.AddrPortFrom(s.server.Addr(), 1)
	for _, kind := range []load.Kind{load.Bulk, load.Ping, load.Idle} {
		if err := s.client.Start(kind, nobody, 1); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", kind, err)
		}
	}
	// This one has no connections to begin with.
	if err := s.client.Start(load.Churn, nobody, 1); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		if _, err := s.client.Mark(); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("connections to nobody are made")
		}
	}
	if _, err := s.client.StopLoad(); err == nil {
		t.Error("connections to nobody were made")
	}
}

// A proxy that loses something must not get a result for it.
func TestLossFailsTheLoad(t *testing.T) {
	for _, c := range []struct {
		kind load.Kind
		says string
	}{
		{load.Bulk, "have arrived"},
		{load.Ping, "wait for the message"},
		{load.Idle, "idle"},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			s := newStage(t)
			lossy := newLossy(t, s)
			// The proxy turns bad once the load runs.
			time.AfterFunc(50*time.Millisecond, func() { lossy.bad.Store(true) })
			if _, _, err := s.run(t, c.kind, lossy.address, 2); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that says %q", err, c.says)
			}
		})
	}
}

// lossy is a proxy that, once bad, drops a byte of what comes, and whatever it
// may have been answered.
type lossy struct {
	address netip.AddrPort
	bad     atomic.Bool
}

func newLossy(t *testing.T, s *stage) *lossy {
	t.Helper()
	l := &lossy{}
	var listener net.Listener
	err := s.pod.Do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	l.address = listener.Addr().(*net.TCPAddr).AddrPort()
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go l.serve(s, client.(*net.TCPConn))
		}
	}()
	return l
}

func (l *lossy) serve(s *stage, client *net.TCPConn) {
	defer client.Close()
	var server net.Conn
	err := s.pod.Do(func() (err error) {
		server, err = net.Dial("tcp", s.server.String())
		return err
	})
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		io.Copy(client, server)
		client.CloseWrite()
	}()
	buffer := make([]byte, 64<<10)
	for dropped := false; ; {
		n, err := client.Read(buffer)
		if err != nil {
			server.(*net.TCPConn).CloseWrite()
			time.Sleep(time.Second) // until the answer has gone
			return
		}
		if l.bad.Load() && !dropped {
			dropped = true
			if n <= load.Message {
				return // of a message there is no telling: the connection goes
			}
			n--
		}
		if _, err := server.Write(buffer[:n]); err != nil {
			return
		}
	}
}
