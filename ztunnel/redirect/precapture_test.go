package redirect

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// older opens connections from and to a pod that is not captured yet, and returns them with how the pod sees them.
func older(t *testing.T, pod, other *netnstest.Pod) (conns []*netnstest.AppConn, flows []Flow) {
	t.Helper()
	near, far := pod.Start(), other.Start()
	near.Listen("[::]:8080")
	far.Listen("[::]:8080")
	near.Listen("127.0.0.1:9090")
	mustDial(t, near, netip.MustParseAddrPort("127.0.0.1:9090")) // stays in the pod, and is not meant
	mustDial(t, near, netip.AddrPortFrom(pod.IPv4, appPort))
	for _, ip := range []netip.Addr{other.IPv4, other.IPv6} {
		out := mustDial(t, near, netip.AddrPortFrom(ip, appPort))
		conns, flows = append(conns, out), append(flows, Flow{out.Local, out.Remote})
	}
	for _, ip := range []netip.Addr{pod.IPv4, pod.IPv6} {
		in := mustDial(t, far, netip.AddrPortFrom(ip, appPort))
		conns, flows = append(conns, in), append(flows, Flow{in.Remote, in.Local})
	}
	slices.SortFunc(flows, func(a, b Flow) int { return a.Remote.Compare(b.Remote) })
	return conns, flows
}

func works(t *testing.T, conns []*netnstest.AppConn) {
	t.Helper()
	for _, c := range conns {
		if err := c.Echo("still here"); err != nil {
			t.Errorf("%s -> %s: %v", c.Local, c.Remote, err)
		}
	}
}

// Connections from before the capture are known, go on, also when the pod turns strict, and end when the grace is over: both
// ends are told. Nothing else has a grace.
func TestOlderConnectionsEndAfterTheGrace(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a, b := openNode(t, network.Node("a")), openNode(t, network.Node("b"))
	pod, other := a.Pod("pod"), b.Pod("other")
	conns, flows := older(t, pod, other)
	b.capture(t, other)
	u := a.capture(t, pod)
	mustDial(t, pod.Start(), netip.AddrPortFrom(other.IPv4, appPort))
	if got := u.Precapture(); !slices.Equal(got, flows) {
		t.Errorf("older connections: %v, want %v", got, flows)
	}
	works(t, conns)
	if err := conns[0].Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one that ended is forgotten", func() bool { return len(u.Precapture()) == len(flows)-1 })
	const grace = 700 * time.Millisecond
	if err := u.SetStrict(true, grace); err != nil {
		t.Fatal(err)
	}
	turned := time.Now()
	works(t, conns[1:])
	time.Sleep(100 * time.Millisecond) // what they acknowledge late
	port := pod.SniffPort()
	if err := resetMark(pod, netip.AddrPortFrom(other.IPv4, appPort)); err != nil {
		t.Error(err)
	}
	time.Sleep(20 * time.Millisecond)
	if n := plaintext(port.Take()); n != 0 {
		t.Errorf("a newer connection had a grace: %d frames", n)
	}
	if err := u.SetStrict(true, time.Hour); err != nil { // the same again
		t.Fatal(err)
	}
	eventually(t, "the older ones end", func() bool { return len(u.Precapture()) == 0 })
	if took := time.Since(turned); took < grace || took > grace+2*guardCheck {
		t.Errorf("they ended after %v", took)
	}
	for _, c := range conns[1:] {
		if err := c.Echo("still here?"); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("%s -> %s: %v, want it ended", c.Local, c.Remote, err)
		}
	}
	time.Sleep(endingTime)
	port.Take()
	if err := resetMark(pod, netip.AddrPortFrom(other.IPv4, appPort)); err != nil {
		t.Error(err)
	}
	if n := plaintext(port.Take()); n != 0 {
		t.Errorf("%d frames after the grace", n)
	}
}

// The kernel goes by the grace alone, and the next process ends what is left.
func TestGraceEndsWithoutTheProcess(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, other := a.Pod("pod"), network.Node("b").Pod("other")
	conns, flows := older(t, pod, other)
	u := a.capture(t, pod)
	if err := u.SetStrict(true, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	turned := time.Now()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	works(t, conns)
	port := pod.SniffPort()
	time.Sleep(time.Until(turned.Add(100*time.Millisecond + endingTime)))
	port.Take()
	for _, c := range conns {
		if err := c.EchoWithin("still here?", 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s -> %s: %v, want silence", c.Local, c.Remote, err)
		}
	}
	if n := plaintext(port.Take()); n != 0 {
		t.Errorf("%d frames after the grace", n)
	}
	a.reopen(t)
	u = a.capture(t, pod)
	eventually(t, "the next process ends them", func() bool { return len(u.Precapture()) == 0 })
	for _, f := range flows {
		for _, s := range pod.Sockets() {
			if s.Local == f.Local && s.Remote == f.Remote && s.Owned {
				t.Errorf("%v is there", s)
			}
		}
	}
}

// What ztunnel carries is never taken for older, however often a pod comes and goes.
func TestOwnConnectionsAreNotOlder(t *testing.T) {
	network := netnstest.New(t, "a", "b")
	a := openNode(t, network.Node("a"))
	pod, other := a.Pod("pod"), network.Node("b").Pod("other")
	other.Start().Listen("[::]:8080")
	app := pod.Start()
	u := a.capture(t, pod)
	carried := mustDial(t, app, netip.AddrPortFrom(other.IPv4, appPort))
	if err := u.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	direct := mustDial(t, app, netip.AddrPortFrom(other.IPv4, appPort))
	u = a.capture(t, pod)
	if got, want := u.Precapture(), []Flow{{direct.Local, direct.Remote}}; !slices.Equal(got, want) {
		t.Errorf("older connections: %v, want %v", got, want)
	}
	if err := u.SetStrict(true, 0); err != nil {
		t.Fatal(err)
	}
	works(t, []*netnstest.AppConn{carried})
	if err := direct.Echo("?"); err == nil {
		t.Error("an older connection has no grace, and goes on")
	}
}
