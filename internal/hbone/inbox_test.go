package hbone

import (
	"io"
	"net"
	"slices"
	"testing"
)

// told notes what an inbox gives it. It takes so many bytes without waiting.
type told struct {
	room  int
	calls []string
	// during is called in Write, which waits.
	during func()
}

func (s *told) Take(p []byte) int {
	n := min(s.room, len(p))
	s.room -= n
	s.calls = append(s.calls, "take "+string(p[:n]))
	return n
}

func (s *told) Write(p net.Buffers) {
	s.calls = append(s.calls, "write "+string(slices.Concat(p...)))
	if s.during != nil {
		s.during()
	}
}

func (s *told) End(err error) { s.calls = append(s.calls, "end "+err.Error()) }

// A failure that comes while bytes wait for their goroutine does not overtake
// them; what the sink does not take at once is not waited for.
func TestFailureComesAfterWhatIsTaken(t *testing.T) {
	for name, c := range map[string]struct {
		room int
		want []string
	}{
		"all":  {10, []string{"take last", "end stream reset: CONNECT_ERROR"}},
		"some": {2, []string{"take la", "end stream reset: CONNECT_ERROR"}},
		"none": {0, []string{"take ", "end stream reset: CONNECT_ERROR"}},
	} {
		t.Run(name, func(t *testing.T) {
			sink := &told{room: c.room}
			in := pending(sink)
			in.err = errFailed
			in.tell() // as finish has it done
			if len(sink.calls) > 0 {
				t.Errorf("before the goroutine ran: %q", sink.calls)
			}
			in.drain()
			if !slices.Equal(sink.calls, c.want) {
				t.Errorf("%q, want %q", sink.calls, c.want)
			}
		})
	}
}

// A failure is told to a sink that waits in Write, and an end in order is not.
func TestFailureInterruptsWaiting(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want []string
	}{
		"failure": {errFailed, []string{"take ", "write last", "end stream reset: CONNECT_ERROR", "written"}},
		"end":     {io.EOF, []string{"take ", "write last", "written", "end EOF"}},
	} {
		t.Run(name, func(t *testing.T) {
			sink := &told{}
			in := pending(sink)
			sink.during = func() {
				in.mu.Lock()
				in.err = c.err
				in.mu.Unlock()
				in.tell()
				sink.calls = append(sink.calls, "written")
			}
			in.drain()
			if !slices.Equal(sink.calls, c.want) {
				t.Errorf("%q, want %q", sink.calls, c.want)
			}
		})
	}
}

// failed has the text of a reset, whatever that is elsewhere.
type failed struct{}

func (failed) Error() string { return "stream reset: CONNECT_ERROR" }

var errFailed error = failed{}

// pending is an inbox with bytes that a goroutine is about to give to a sink.
func pending(sink Sink) *inbox {
	s := &session{recvWindow: tunnelWindow} // owes its peer no credit
	st := &stream{s: s, remoteDone: true}
	in := &st.inbox
	in.st, in.sink, in.draining = st, sink, true
	in.addLocked([]byte("last"))
	return in
}
