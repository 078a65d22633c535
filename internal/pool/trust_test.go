package pool

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// trust trusts everybody but those whose addresses it is told.
type trust struct {
	mu      sync.Mutex
	not     map[string]bool // by the local address of the connection
	changed chan struct{}
	since   time.Time    // as of the last question
	lasts   atomic.Int64 // nanoseconds
	retired atomic.Int64 // up to when, in nanoseconds
}

var errNotTrusted = errors.New("not trusted")

// Proof is named after the local address, and lasts from when the tunnel was dialed,
// an hour if that is zero.
func (t *trust) Proof(conn net.Conn) certs.Proof {
	end := time.Now().Round(0).Add(cmp.Or(time.Duration(t.lasts.Load()), time.Hour))
	return certs.Proof{At: time.Now(), State: tls.ConnectionState{
		ServerName: conn.LocalAddr().String(), PeerCertificates: []*x509.Certificate{{NotAfter: end}},
	}}
}

func (t *trust) Trusts(own, latest certs.Proof) (time.Duration, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since = own.At
	end := certs.Until(latest.State)
	if t.not[own.State.ServerName] || time.Now().After(end) {
		return 0, errNotTrusted
	}
	return time.Until(end) + time.Millisecond, nil
}

// Retires those that were shown up to now, once retire was called.
func (t *trust) Retires(p certs.Proof) bool { return p.At.UnixNano() <= t.retired.Load() }

// retire what was shown up to now.
func (t *trust) retire() {
	t.retired.Store(time.Now().UnixNano())
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *trust) TrustChanged() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

// end trusts a tunnel's far end no longer.
func (t *trust) end(of *tunnel) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.not = map[string]bool{of.proof.State.ServerName: true}
	close(t.changed)
	t.changed = make(chan struct{})
}

// A tunnel whose far end is trusted no longer is cut, with a reason for each
// connection in it; others are left alone, and the next connection gets a new one.
func TestTunnelsOfPeersThatAreTrustedNoLonger(t *testing.T) {
	r := start(t)
	distrusted, kept := r.open(), r.open2(t)
	r.echo(kept)
	reason := make(chan error, 1)
	distrusted.OnDistrust(func(err error) { reason <- err })
	kept.OnDistrust(func(err error) { t.Errorf("the other tunnel is cut: %v", err) })
	began := time.Now()
	r.trust.end(distrusted.tunnel)
	select {
	case err := <-reason:
		if !errors.Is(err, errNotTrusted) {
			t.Errorf("cut for %v", err)
		}
	case <-time.After(time.Second):
		t.Fatal("not cut within a second")
	}
	if n, err := distrusted.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v; want an error", n, err)
	}
	t.Logf("cut after %s", time.Since(began))
	late := make(chan error, 1)
	distrusted.OnDistrust(func(err error) { late <- err })
	if err := <-late; !errors.Is(err, errNotTrusted) {
		t.Errorf("who asks later hears %v", err)
	}
	r.echo(kept)
	dials := r.dials.Load()
	next := r.open()
	r.echo(next)
	if r.dials.Load() != dials+1 {
		t.Error("the next connection is in a tunnel that was cut")
	}
	ended := r.pool.cfg.Metrics.ends.WithLabelValues("distrusted")
	for deadline := time.Now().Add(5 * time.Second); testutil.ToFloat64(ended) != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%v tunnels are counted as distrusted, want one", testutil.ToFloat64(ended))
		}
	}
}

// A far end that was trusted no longer by the time the tunnel stood is cut as well.
func TestTrustThatEndsDuringTheDial(t *testing.T) {
	r := start(t)
	r.trust.mu.Lock()
	s := make(chan *Stream)
	go func() {
		got, err := r.pool.Open(t.Context(), r.target, request)
		if err != nil {
			t.Error(err)
		}
		s <- got
	}()
	stream := <-s // the tunnel stands, and is about to be judged
	r.trust.not = map[string]bool{stream.tunnel.proof.State.ServerName: true}
	r.trust.mu.Unlock()
	cut := make(chan error, 1)
	stream.OnDistrust(func(err error) { cut <- err })
	select {
	case <-cut:
	case <-time.After(time.Second):
		t.Fatal("not cut")
	}
	stream.Close()
}

// A far end that had its certificate made while it was dialed is judged as of when
// it had proven itself: before, the certificate was not valid yet.
func TestFarEndsAreJudgedAsOfTheEndOfTheDial(t *testing.T) {
	r := start(t)
	r.hold.Lock()
	opened := make(chan *Stream)
	go func() { opened <- r.open() }()
	for r.dials.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	made := time.Now()
	r.hold.Unlock()
	r.echo(<-opened)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		r.trust.mu.Lock()
		since := r.trust.since
		r.trust.mu.Unlock()
		if !since.IsZero() {
			if since.Before(made) {
				t.Errorf("judged as of %s before the dial ended", made.Sub(since))
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("not judged")
		}
	}
}

// open2 opens a stream to another peer.
func (r *rig) open2(t *testing.T) *Stream {
	t.Helper()
	s, err := r.pool.Open(t.Context(), Target{netip.MustParseAddrPort("192.0.2.2:15008"), []spiffe.ID{identity("web")}}, request)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A tunnel with connections has another one made in time, by which both ends prove
// themselves anew: the connections live on in theirs, and later ones go into the new.
func TestTunnelsAreProvenAnewInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startPiped(t)
		const lasts = 2 * time.Second
		r.trust.lasts.Store(int64(lasts))
		s := r.open()
		first := s.tunnel
		idle := r.open2(t)
		idle.Close()
		for began := time.Now(); time.Since(began) < 3*lasts; time.Sleep(50 * time.Millisecond) {
			r.echo(s)
		}
		// After three quarters of it each time; of the unused tunnel's peer none is needed.
		if n := r.dials.Load(); n != 5 {
			t.Errorf("%d dials in three times what a proof lasts, want 5: two, and three anew", n)
		}
		next := r.open()
		r.echo(next)
		if next.tunnel == first {
			t.Error("a new connection is in the tunnel of which a certificate has ended")
		}
	})
}

// If they cannot prove themselves anew, the connections end when the proof does.
func TestTunnelsThatAreNotProvenAnewEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startPiped(t)
		const lasts = 2 * time.Second
		r.trust.lasts.Store(int64(lasts))
		began := time.Now()
		s := r.open()
		refused := errors.New("refused")
		r.failWith.Store(&refused)
		reason := make(chan error, 1)
		s.OnDistrust(func(err error) { reason <- err })
		r.echo(s)
		if err := <-reason; !errors.Is(err, errNotTrusted) {
			t.Errorf("cut for %v", err)
		}
		if lived := time.Since(began); lived < lasts || lived > lasts+10*time.Millisecond {
			t.Errorf("cut after %v, want %v", lived, lasts)
		}
		if n := r.dials.Load(); n < 2 {
			t.Error("nothing was tried")
		}
	})
}

// A root is about to go: another tunnel is made beside the one with connections, in
// which later ones go; those that are there live on.
func TestTunnelsThatRetireAreReplacedAhead(t *testing.T) {
	r := start(t)
	s := r.open()
	defer s.Close()
	r.echo(s)
	r.trust.retire()
	r.await("another tunnel", func() bool { return r.tunnels() == 2 })
	next := r.open()
	defer next.Close()
	r.echo(next)
	if next.tunnel == s.tunnel {
		t.Error("a new connection is in the tunnel that retires")
	}
	r.echo(s)
	if n := r.dials.Load(); n != 2 {
		t.Errorf("%d dials, want 2", n)
	}
}
