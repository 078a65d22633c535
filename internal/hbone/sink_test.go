package hbone_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/hbone"
)

// sink records what a stream diverted to it.
type sink struct {
	take  func(p []byte) int // how much of p Take takes; all of it if nil
	write func(n int)        // what Write does before it returns
	calls atomic.Int64       // Take, Write, End
	busy  atomic.Bool        // a Take or a Write has not returned
	mu    sync.Mutex         // guards what follows
	sum   hash.Hash          // of the bytes
	bytes int                // how many
	ends  []error
	fault error // a broken promise of Divert
	ended chan struct{}
}

func newSink() *sink { return &sink{sum: sha256.New(), ended: make(chan struct{})} }

func (s *sink) enter(call string) {
	s.calls.Add(1)
	if !s.busy.CompareAndSwap(false, true) {
		s.broken(call + " while another call runs")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ends) > 0 {
		s.fault = fmt.Errorf("%s after End(%v)", call, s.ends[0])
	}
}

func (s *sink) broken(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = errors.New(what)
}

func (s *sink) keep(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sum.Write(p)
	s.bytes += len(p)
}

func (s *sink) Take(p []byte) int {
	s.enter("Take")
	defer s.busy.Store(false)
	if len(p) == 0 {
		s.broken("Take of nothing")
	}
	n := len(p)
	if s.take != nil {
		n = s.take(p)
	}
	s.keep(p[:n])
	return n
}

func (s *sink) Write(p net.Buffers) {
	s.enter("Write")
	defer s.busy.Store(false)
	n := 0
	for _, b := range p {
		n += len(b)
		s.keep(b)
	}
	if n == 0 {
		s.broken("Write of nothing")
	}
	if s.write != nil {
		s.write(n)
	}
}

func (s *sink) End(err error) {
	s.calls.Add(1)
	if err == io.EOF && s.busy.Load() {
		s.broken("End(EOF) while another call runs")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ends = append(s.ends, err); len(s.ends) == 1 {
		close(s.ended)
	}
}

// check reports what was promised and not kept; want is how End came.
func (s *sink) check(want error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.fault != nil:
		return s.fault
	case len(s.ends) != 1:
		return fmt.Errorf("End came %d times: %v", len(s.ends), s.ends)
	case !errors.Is(s.ends[0], want):
		return fmt.Errorf("End(%v), want %v", s.ends[0], want)
	}
	return nil
}

// diverting is a tunnel whose server gives every stream to the sink that next
// returns for it, and keeps it open until the test ends.
func diverting(t *testing.T, next func() hbone.Sink) *rig {
	t.Helper()
	done := make(chan struct{})
	r := tunnel(t, hbone.Options{}, accepted(t, func(st hbone.Stream) {
		st.Divert(next())
		<-done
	}))
	t.Cleanup(func() { close(done) })
	return r
}

// flaky takes as much as it likes, and sometimes makes the rest wait.
func flaky(seed uint64) *sink {
	random := rand.New(rand.NewPCG(seed, 1))
	s := newSink()
	s.take = func(p []byte) int {
		switch random.IntN(4) {
		case 0:
			return 0
		case 1:
			return random.IntN(len(p) + 1)
		}
		return len(p)
	}
	writes := rand.New(rand.NewPCG(seed, 2))
	s.write = func(int) {
		if writes.IntN(8) == 0 {
			time.Sleep(time.Duration(writes.IntN(1000)) * time.Microsecond)
		}
	}
	return s
}

// TestSinkGetsEachByteOnce: in order, whatever part of it Take refuses, and End
// after the last, on twenty streams at once.
func TestSinkGetsEachByteOnce(t *testing.T) {
	const streams, size = 20, 1 << 20
	var all counter
	sinks := make(chan *sink, 1)
	r := diverting(t, func() hbone.Sink { return <-sinks })
	for i := range streams {
		s := flaky(uint64(i))
		sinks <- s
		st := r.open(t)
		all.run(func() error {
			defer st.Close()
			random := rand.NewChaCha8([32]byte{byte(i)})
			sizes := rand.New(random)
			sent := sha256.New()
			for left := size; left > 0; {
				b := make([]byte, min(left, 1+sizes.IntN(1<<(4+i%13))))
				random.Read(b)
				sent.Write(b)
				if _, err := st.Write(b); err != nil {
					return err
				}
				left -= len(b)
			}
			st.CloseWrite()
			select {
			case <-s.ended:
			case <-time.After(10 * time.Second):
				return fmt.Errorf("stream %d: no End after %d bytes", i, s.bytes)
			}
			if !bytes.Equal(s.sum.Sum(nil), sent.Sum(nil)) {
				return fmt.Errorf("stream %d: %d bytes of %d, or others", i, s.bytes, size)
			}
			return s.check(io.EOF)
		})
	}
	if err := all.wait(); err != nil {
		t.Error(err)
	}
}

// TestDivertLate: what came before Divert is given first, and the end if that has
// come; what was read before is not given again.
func TestDivertLate(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(st hbone.Stream)
		want error
	}{
		"EOF":   {func(st hbone.Stream) { st.CloseWrite() }, io.EOF},
		"reset": {func(st hbone.Stream) { st.Reset() }, hbone.ErrReset},
	} {
		t.Run(name, func(t *testing.T) {
			arrived, s, done := make(chan struct{}), newSink(), make(chan struct{})
			defer close(done)
			r := tunnel(t, hbone.Options{}, func(ctx context.Context, in *hbone.Incoming) {
				st, err := in.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				if in.Header.Get("Marker") != "" {
					echo(st)
					return
				}
				if _, err := io.ReadFull(st, make([]byte, 4)); err != nil {
					t.Error(err)
				}
				<-arrived
				st.Divert(s)
				<-done
			})
			st := r.open(t)
			io.WriteString(st, "readgiven")
			r.passes(t) // frames keep their order, so these have come
			c.end(st)
			r.passes(t)
			close(arrived)
			within(t, 5*time.Second, "End", func() { <-s.ended })
			if err := s.check(c.want); err != nil {
				t.Error(err)
			}
			if want := sha256.Sum256([]byte("given")); c.want == io.EOF && !bytes.Equal(s.sum.Sum(nil), want[:]) {
				t.Errorf("%d bytes, or others than were sent", s.bytes)
			}
		})
	}
}

// passes returns once a stream has gone through the tunnel and back.
func (r *rig) passes(t *testing.T) {
	t.Helper()
	st, err := r.Open(t.Context(), hbone.Request{Authority: target, Header: map[string][]string{"Marker": {"yes"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	go func() { io.WriteString(st, "passes"); st.CloseWrite() }()
	if b, err := io.ReadAll(st); string(b) != "passes" || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
}

// stuck takes nothing, and its Write waits for release.
func stuck() (s *sink, writing chan struct{}, release func()) {
	s, writing = newSink(), make(chan struct{}, 1)
	released := make(chan struct{})
	s.take = func([]byte) int { return 0 }
	s.write = func(int) {
		select {
		case writing <- struct{}{}:
		default:
		}
		<-released
	}
	return s, writing, sync.OnceFunc(func() { close(released) })
}

// TestFailureOvertakesAStuckWrite: a sink that waits is told at once that it
// waits for nothing, and gets nothing after that.
func TestFailureOvertakesAStuckWrite(t *testing.T) {
	for name, c := range map[string]struct {
		fail func(r *rig, st hbone.Stream)
		want error
	}{
		"reset":             {func(_ *rig, st hbone.Stream) { st.Reset() }, hbone.ErrReset},
		"closed":            {func(_ *rig, st hbone.Stream) { st.Close() }, hbone.ErrReset},
		"the tunnel closed": {func(r *rig, _ hbone.Stream) { go r.Close() }, hbone.ErrTunnelClosed},
	} {
		t.Run(name, func(t *testing.T) {
			s, writing, release := stuck()
			defer release()
			r := diverting(t, func() hbone.Sink { return s })
			st := r.open(t)
			io.WriteString(st, "first")
			<-writing
			st.Write(make([]byte, 128<<10)) // which waits behind it
			c.fail(r, st)
			within(t, time.Second, "End", func() { <-s.ended })
			release()
			time.Sleep(20 * time.Millisecond)
			if err := s.check(c.want); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestEndInOrderWaitsForAStuckWrite: EOF overtakes nothing.
func TestEndInOrderWaitsForAStuckWrite(t *testing.T) {
	s, writing, release := stuck()
	defer release()
	r := diverting(t, func() hbone.Sink { return s })
	st := r.open(t)
	st.Write(make([]byte, 128<<10))
	<-writing
	st.CloseWrite()
	select {
	case <-s.ended:
		t.Errorf("End(%v) before the last byte", s.ends)
	case <-time.After(50 * time.Millisecond):
	}
	release()
	within(t, 5*time.Second, "End", func() { <-s.ended })
	if err := s.check(io.EOF); err != nil || s.bytes != 128<<10 {
		t.Errorf("%d bytes, %v", s.bytes, err)
	}
}

// TestNothingAfterClose: a stream that this side closed or reset gives its sink
// nothing more, not even End, while the peer goes on.
func TestNothingAfterClose(t *testing.T) {
	for name, leave := range map[string]func(hbone.Stream){
		"Close": func(st hbone.Stream) { st.Close() },
		"Reset": func(st hbone.Stream) { st.Reset() },
	} {
		for kind, s := range map[string]*sink{"that takes all": newSink(), "that is flaky": flaky(1)} {
			t.Run(name+", a sink "+kind, func(t *testing.T) {
				left := testNothingAfter(t, s, leave)
				time.Sleep(50 * time.Millisecond)
				if n := s.calls.Load(); n != left || len(s.ends) > 0 {
					t.Errorf("%d calls after it was left, End %v", n-left, s.ends)
				}
			})
		}
	}
}

// testNothingAfter leaves a stream that receives, and returns how many calls its
// sink had got then.
func testNothingAfter(t *testing.T, s *sink, leave func(hbone.Stream)) int64 {
	t.Helper()
	calls, done := make(chan int64), make(chan struct{})
	r := tunnel(t, hbone.Options{}, accepted(t, func(st hbone.Stream) {
		st.Divert(s)
		for s.calls.Load() < 100 {
			time.Sleep(time.Millisecond)
		}
		leave(st)
		time.Sleep(10 * time.Millisecond) // for the call that it may have overtaken
		calls <- s.calls.Load()
		<-done
	}))
	t.Cleanup(func() { close(done) })
	st := r.open(t)
	defer st.Close()
	go func() {
		for {
			if _, err := st.Write([]byte("more and more")); err != nil {
				return
			}
		}
	}()
	return <-calls
}

// TestCreditReturns: a sink that sometimes refuses gets far more than a window.
func TestCreditReturns(t *testing.T) {
	const size = 64 << 20
	s := flaky(7)
	r := diverting(t, func() hbone.Sink { return s })
	st := r.open(t)
	defer st.Close()
	within(t, 30*time.Second, "64 MiB", func() {
		for range size >> 20 {
			if _, err := st.Write(make([]byte, 1<<20)); err != nil {
				t.Error(err)
				return
			}
		}
		st.CloseWrite()
		<-s.ended
	})
	if err := s.check(io.EOF); err != nil || s.bytes != size {
		t.Errorf("%d bytes, %v", s.bytes, err)
	}
}

// TestStuckSinkStopsItsSender: at about a window, and holds up nobody else.
func TestStuckSinkStopsItsSender(t *testing.T) {
	s, _, release := stuck()
	defer release()
	done := make(chan struct{})
	defer close(done)
	r := tunnel(t, hbone.Options{}, func(_ context.Context, in *hbone.Incoming) {
		st, err := in.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		if in.Header.Get("Marker") != "" {
			echo(st)
			return
		}
		st.Divert(s)
		<-done
	})
	st := r.open(t)
	defer st.Close()
	var written atomic.Int64
	finished := make(chan struct{})
	const size = 16 << 20
	go func() {
		defer close(finished)
		for range size >> 14 {
			n, err := st.Write(make([]byte, 16<<10))
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
		st.CloseWrite()
	}()
	for before := int64(-1); before != written.Load(); time.Sleep(100 * time.Millisecond) {
		before = written.Load()
	}
	if n := written.Load(); n < 256<<10 || n > 256<<10+2<<20 {
		t.Errorf("wrote %d bytes to a sink that takes none; the window is 256 KiB", n)
	}
	for range 20 {
		r.passes(t)
	}
	release()
	within(t, 10*time.Second, "the rest", func() { <-finished; <-s.ended })
	if err := s.check(io.EOF); err != nil || s.bytes != size {
		t.Errorf("%d bytes, %v", s.bytes, err)
	}
}
