package quota

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

func TestCounterBoundsEachKeyAlone(t *testing.T) {
	c := NewCounter[string](2)
	if !c.Take("a") || !c.Take("a") {
		t.Fatal("refused within the limit")
	}
	if c.Take("a") {
		t.Error("a third was given")
	}
	if !c.Take("b") {
		t.Error("another key was refused")
	}
	c.Give("a")
	if got := c.Held("a"); got != 1 {
		t.Errorf("a holds %d after it gave one back", got)
	}
	if !c.Take("a") {
		t.Error("refused what was given back")
	}
}

func TestCounterForgetsWhoHoldsNothing(t *testing.T) {
	c := NewCounter[int](1)
	for i := range 1000 {
		c.Take(i)
		c.Give(i)
	}
	if len(c.held) != 0 {
		t.Errorf("%d keys are remembered", len(c.held))
	}
}

// TestCrowdKeepsOutNobodyButItself: a door that one key has filled still opens to
// everybody else, at the crowd's expense.
func TestCrowdKeepsOutNobodyButItself(t *testing.T) {
	d := NewDoor[string](100, 10)
	evicted := map[string]int{}
	enter := func(key string) (func(), bool) { return d.Enter(key, func() { evicted[key]++ }) }
	for range 10 {
		if _, ok := enter("crowd"); !ok {
			t.Fatal("refused while there was room")
		}
	}
	if _, ok := enter("crowd"); ok {
		t.Error("the crowd got in one more")
	}
	for i := range 4 {
		if _, ok := enter(fmt.Sprint("honest", i)); !ok {
			t.Errorf("honest %d was kept out", i)
		}
	}
	if evicted["crowd"] != 4 || len(evicted) != 1 {
		t.Errorf("evicted %v, want four of the crowd", evicted)
	}
	if d.Inside() != 10 {
		t.Errorf("%d inside", d.Inside())
	}
}

func TestDoorBoundsEachKey(t *testing.T) {
	d := NewDoor[string](2, 10)
	d.Enter("a", func() {})
	leave, _ := d.Enter("a", func() {})
	if _, ok := d.Enter("a", func() {}); ok {
		t.Error("a third of a key was let in")
	}
	leave()
	leave()
	if _, ok := d.Enter("a", func() {}); !ok || d.Inside() != 2 {
		t.Errorf("after one left: let in %t, %d inside", ok, d.Inside())
	}
}

func TestWhoWasEvictedLeavesWithoutEffect(t *testing.T) {
	d := NewDoor[string](10, 3)
	var leaves []func()
	for range 3 {
		leave, _ := d.Enter("crowd", func() {})
		leaves = append(leaves, leave)
	}
	d.Enter("honest", func() {})
	for _, leave := range leaves {
		leave()
	}
	if d.Inside() != 1 || len(d.inside) != 1 {
		t.Errorf("%d inside, of %d keys; only the honest one has not left", d.Inside(), len(d.inside))
	}
}

// TestOneNeverTakesAll: whatever one party takes, every other gets its part.
func TestOneNeverTakesAll(t *testing.T) {
	s := NewShares(4000)
	greedy := s.Join()
	var others []*Share
	for range 99 {
		others = append(others, s.Join())
	}
	n := 0
	for greedy.Take(1) {
		n++
	}
	if n != 3000 {
		t.Errorf("the greedy one took %d, three quarters are 3000", n)
	}
	for i, other := range others {
		for k := range 10 {
			if !other.Take(1) {
				t.Fatalf("party %d got only %d of its 10", i, k)
			}
		}
	}
	if s.Held() > s.Capacity() {
		t.Errorf("%d held, of %d", s.Held(), s.Capacity())
	}
}

func TestWhatIsGivenBackIsThereAgain(t *testing.T) {
	s := NewShares(4)
	p, other := s.Join(), s.Join()
	n := 0
	for p.Take(1) {
		n++
	}
	for range n {
		p.Give(1)
	}
	p.Leave()
	p.Leave()
	if s.Held() != 0 || s.parties != 1 {
		t.Errorf("%d held by %d parties", s.Held(), s.parties)
	}
	if !other.Take(1) {
		t.Error("nothing is there again")
	}
}

// TestListenerServesOthers, while one client holds all that it may, and that one
// again when it let go.
func TestListenerServesOthers(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var refused sync.WaitGroup
	refused.Add(1)
	l := NewListener(inner, 2, nil)
	var once sync.Once
	l.refused = func(netip.Addr) { once.Do(refused.Done) }
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() { defer conn.Close(); io.Copy(conn, conn) })
		}
	})
	defer served.Wait()
	defer l.Close()
	dial := func(from string) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := d.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	echoes := func(conn net.Conn) bool {
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		conn.Write([]byte("x"))
		_, err := conn.Read(make([]byte, 1))
		return err == nil
	}
	a, b := dial("127.0.0.2"), dial("127.0.0.2")
	defer a.Close()
	defer b.Close()
	if !echoes(a) || !echoes(b) {
		t.Fatal("not served within the limit")
	}
	if echoes(dial("127.0.0.2")) {
		t.Error("a third was served")
	}
	refused.Wait()
	c := dial("127.0.0.3")
	defer c.Close()
	if !echoes(c) {
		t.Error("another client is not served")
	}
	a.Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		d := dial("127.0.0.2")
		ok := echoes(d)
		d.Close()
		if ok {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not served again after one was closed")
		}
	}
}
