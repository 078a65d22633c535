package relay

import (
	"errors"
	"runtime"
	"testing"
	"time"
)

var allKinds = [][2]kind{{socket, socket}, {stream, socket}, {socket, stream}}

// parked waits until no goroutine reads a socket of the connections of relay.
func (r *Relay) parkedIn(t *testing.T, want int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		r.lot.mu.Lock()
		n := len(r.lot.waiting)
		r.lot.mu.Unlock()
		if n == want {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("%d directions are parked, want %d", n, want)
		}
	}
}

// sockets of a connection: those, and not streams, are parked.
func sockets(kinds [2]kind) (n int) {
	for _, k := range kinds {
		if k == socket {
			n++
		}
	}
	return n
}

// An idle connection has no goroutine, and everything that may happen to it does.
func TestIdleConnectionsAreParkedAndWake(t *testing.T) {
	for _, kinds := range allKinds {
		relay := carrier(t)
		r := startWith(t, relay, kinds[0], kinds[1])
		for range 3 {
			relay.parkedIn(t, sockets(kinds))
			r.write(r.client, "question")
			r.read(r.server, "question")
			r.write(r.server, "answer")
			r.read(r.client, "answer")
		}
		relay.parkedIn(t, sockets(kinds))
		r.client.CloseWrite()
		r.readEOF(r.server)
		r.write(r.server, "last word")
		r.read(r.client, "last word")
		r.server.CloseWrite()
		r.readEOF(r.client)
		r.ends(Closed, 3*len("question"), 3*len("answer")+len("last word"))
		relay.parkedIn(t, 0)
	}
}

func TestAResetWakesAParkedConnection(t *testing.T) {
	for _, kinds := range allKinds {
		relay := carrier(t)
		r := startWith(t, relay, kinds[0], kinds[1])
		relay.parkedIn(t, sockets(kinds))
		Reset(r.client)
		r.readReset(r.server)
		r.ends(ClientReset, 0, 0)

		r = startWith(t, relay, kinds[0], kinds[1])
		relay.parkedIn(t, sockets(kinds))
		Reset(r.server)
		r.readReset(r.client)
		r.ends(ServerReset, 0, 0)
		relay.parkedIn(t, 0)
	}
}

func TestCancellingCutsAParkedConnection(t *testing.T) {
	for _, kinds := range allKinds {
		relay := carrier(t)
		r := startWith(t, relay, kinds[0], kinds[1])
		relay.parkedIn(t, sockets(kinds))
		cause := errors.New("a policy")
		r.cut(cause)
		r.readReset(r.client)
		r.readReset(r.server)
		if res := r.result(); res.Reason != Cut || res.Err != cause {
			t.Fatalf("ended with %+v", res)
		}
		relay.parkedIn(t, 0)
	}
}

func TestParkedConnectionsHaveNoGoroutines(t *testing.T) {
	const n = 200
	relay := carrier(t)
	before := runtime.NumGoroutine()
	rigs := make([]*rig, n)
	for i := range rigs {
		rigs[i] = startWith(t, relay, socket, socket)
	}
	relay.parkedIn(t, 2*n)
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before+10; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines for %d idle connections", runtime.NumGoroutine()-before, n)
		}
	}
	for _, r := range rigs {
		r.write(r.client, "still there")
		r.read(r.server, "still there")
		r.client.Close()
		r.server.Close()
		r.result()
	}
}

// Connections park and wake at the same time as bytes come, as inspections run,
// and as they are cut: nothing is lost, and every one ends once.
func TestParkingRaces(t *testing.T) {
	relay := carrier(t)
	relay.inspectFirst, relay.inspectEvery = 100*time.Microsecond, 100*time.Microsecond
	for i := range 100 {
		kinds := allKinds[i%len(allKinds)]
		r := startWith(t, relay, kinds[0], kinds[1])
		for range 20 {
			r.write(r.client, "ping")
			time.Sleep(time.Duration(i%7) * 50 * time.Microsecond)
			r.read(r.server, "ping")
			r.write(r.server, "pong")
			r.read(r.client, "pong")
		}
		switch i % 3 {
		case 0:
			r.cut(errors.New("cut"))
		case 1:
			Reset(r.client)
		default:
			r.client.Close()
			r.server.Close()
		}
		r.result()
	}
	relay.parkedIn(t, 0)
}
