package load_test

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/load"
	"github.com/ambit-mesh/ambit/e2e/bench/l7/plan"
	"github.com/ambit-mesh/ambit/e2e/bench/pki"
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

// stage is backends and a client in one pod, and a router between them, which knows the
// backend of each path.
type stage struct {
	client load.Generator
	pod    *netnstest.NetNS
	pki    string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{pod: netnstest.NewNetNS(t), pki: t.TempDir()}
	if _, err := pki.New(s.pki); err != nil {
		t.Fatal(err)
	}
	backends, err := load.StartBackends(process.In(s.pod.NetNS), t.TempDir(), s.pki)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backends.Stop() })
	if s.client, err = load.StartGenerator(process.In(s.pod.NetNS), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.client.Stop() })
	return s
}

// router answers by itself, late if slow is set, wrong if wrong is.
type router struct {
	address netip.AddrPort
	wrong   atomic.Pointer[[]byte]
	slow    atomic.Int64
}

func newRouter(t *testing.T, s *stage) *router {
	t.Helper()
	r := &router{}
	var listener net.Listener
	if err := s.pod.Do(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	r.address = listener.Addr().(*net.TCPAddr).AddrPort()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go r.serve(conn)
		}
	}()
	return r
}

func (r *router) serve(conn net.Conn) {
	defer conn.Close()
	buffer := make([]byte, 4096)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		time.Sleep(time.Duration(r.slow.Load()))
		answer := plan.Response("?")
		for _, q := range plan.Requests() {
			if bytes.Equal(q.Text, buffer[:n]) {
				answer = plan.Response(q.Backends[:1])
			}
		}
		if wrong := r.wrong.Load(); wrong != nil {
			answer = *wrong
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

func (r *router) target() load.Target { return load.Target{Carrier: load.Plain, Address: r.address} }

func TestClosedLoopCountsAnswers(t *testing.T) {
	s := newStage(t)
	r := newRouter(t, s)
	if err := s.client.Closed(r.target(), 4); err != nil {
		t.Fatal(err)
	}
	before, err := s.client.Mark()
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	after, _ := s.client.Mark()
	if _, err := s.client.StopLoad(); err != nil || after-before < 100 {
		t.Errorf("%d requests in 100 ms, %v", after-before, err)
	}
}

func TestOpenLoopKeepsItsRateAndCountsTheWait(t *testing.T) {
	s := newStage(t)
	r := newRouter(t, s)
	const rate, pause = 1000, 300 * time.Millisecond
	if err := s.client.Open(r.target(), 4, rate); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Mark(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(pause)
	// It stands still for a while: a closed loop would have made four requests then.
	r.slow.Store(int64(pause))
	time.Sleep(pause / 3)
	r.slow.Store(0)
	time.Sleep(2 * pause)
	l, err := s.client.StopLoad()
	if err != nil {
		t.Fatal(err)
	}
	if want := rate * 2 * int(pause/time.Millisecond) / 1000; l.Samples < want {
		t.Errorf("%d requests, want at least %d", l.Samples, want)
	}
	if l.P50 <= 0 || l.P99 < pause/2 || l.P999 < l.P99 {
		t.Errorf("got %+v, with nothing answered for %s", l, pause)
	}
}

func TestOpenLoopThatCannotKeepUpFails(t *testing.T) {
	s := newStage(t)
	r := newRouter(t, s)
	r.slow.Store(int64(20 * time.Millisecond))
	if err := s.client.Open(r.target(), 2, 2000); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond)
	if _, err := s.client.StopLoad(); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("got %v", err)
	}
}

func TestAnotherResponseThanTheRightOneFailsTheLoad(t *testing.T) {
	whole := string(plan.Response("a"))
	for name, wrong := range map[string]string{
		"another backend": string(plan.Response("z")),
		"another status":  strings.Replace(whole, "200 OK", "503 No", 1),
		"longer":          whole + "x",
		"no name":         strings.Replace(whole, plan.NameField, "x-other", 1),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			r := newRouter(t, s)
			if err := s.client.Closed(r.target(), 2); err != nil {
				t.Fatal(err)
			}
			b := []byte(wrong)
			r.wrong.Store(&b)
			time.Sleep(50 * time.Millisecond)
			if _, err := s.client.StopLoad(); err == nil || !strings.Contains(err.Error(), "response") {
				t.Errorf("got %v", err)
			}
			if err := s.client.Closed(r.target(), 2); err == nil {
				t.Error("it begins")
			}
		})
	}
}

// The backends, asked without a router: whoever wants another one hears so.
func TestBackendsAnswerByAllThreeWays(t *testing.T) {
	s := newStage(t)
	home := netip.MustParseAddr("127.0.0.1")
	for _, to := range []load.Target{
		{Carrier: load.Plain, Address: netip.AddrPortFrom(home, plan.FirstPort)},
		{Carrier: load.TLS, Address: netip.AddrPortFrom(home, plan.FirstTLSPort), PKI: s.pki},
		{Carrier: load.Tunnel, Address: netip.AddrPortFrom(home, 15008), Authority: netip.AddrPortFrom(home, plan.FirstPort), Identity: pki.ServerID.String(), PKI: s.pki},
	} {
		t.Run(string(to.Carrier), func(t *testing.T) {
			if err := s.client.Closed(to, 1); err != nil { // the first request is for a
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond)
			if _, err := s.client.StopLoad(); err == nil || !strings.Contains(err.Error(), "not from one of the backends") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestBackendsWantACertificate(t *testing.T) {
	s := newStage(t)
	err := s.pod.Do(func() error {
		conn, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), plan.FirstTLSPort).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.Write(plan.Requests()[0].Text)
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		if all, _ := io.ReadAll(conn); bytes.Contains(all, []byte("200 OK")) {
			t.Errorf("got %q", all)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
