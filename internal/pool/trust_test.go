package pool

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// trust trusts everybody but those whose addresses it is told.
type trust struct {
	mu      sync.Mutex
	not     map[string]bool // by the local address of the connection
	changed chan struct{}
	since   time.Time // as of the last question
}

var errNotTrusted = errors.New("not trusted")

func (t *trust) Trusts(conn net.Conn, since time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since = since
	if t.not[conn.LocalAddr().String()] {
		return errNotTrusted
	}
	return nil
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
	t.not = map[string]bool{of.conn.LocalAddr().String(): true}
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
	r.trust.not = map[string]bool{stream.tunnel.conn.LocalAddr().String(): true}
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
