package proxytest

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs/certstest"
)

// Another root comes, signs, and the former one goes, while connections are opened
// all the time, and one stays open: none fails, and that one lives on.
func TestNoConnectionFailsWhileTheRootIsRotated(t *testing.T) {
	m := New(t)
	old, next := m.CA, certstest.NewCA(t, trustDomain)
	client, server := m.Pod("client").Start(), m.Pod("server").Start()
	echoing(server)
	standing := client.Connect(server.Addr)
	say(t, standing, "x")
	hear(t, standing, "x")

	var opened, failed atomic.Int32
	var opening sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		opening.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond): // 200 a second, all together
				}
				opened.Add(1)
				if err := client.tryEcho(server); err != nil {
					failed.Add(1)
					t.Errorf("a connection fails: %v", err)
				}
			}
		})
	}
	rest := func() { time.Sleep(time.Second) }
	rest()
	m.SetRoots(append(old.Bundle(), next.Bundle()...), nil)
	rest()
	m.SetSign(next.Fetch)
	m.SetRoots(append(old.Bundle(), next.Bundle()...), old.Bundle())
	sum := sha256.Sum256(old.Certificate().Raw)
	for deadline := time.Now().Add(30 * time.Second); slices.Contains(m.Certs.Roots(), hex.EncodeToString(sum[:])); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the former root's certificates are still there")
		}
	}
	m.SetRoots(next.Bundle(), nil)
	rest()
	rest()
	close(stop)
	opening.Wait()
	standing.SetDeadline(time.Now().Add(5 * time.Second))
	say(t, standing, "y")
	hear(t, standing, "y")
	t.Logf("%d connections, %d failed", opened.Load(), failed.Load())
	if opened.Load() < 500 {
		t.Errorf("only %d connections were opened", opened.Load())
	}
	if n := m.metric("ambit_connection_ends_total", "reason", "Distrusted"); n != 0 {
		t.Errorf("%v connections were cut", n)
	}
}

// A root that goes at once, as one whose key has leaked, takes along what nobody has
// proven anew.
func TestRootThatGoesAtOnceCutsWhatIsBelowIt(t *testing.T) {
	m := New(t)
	next := certstest.NewCA(t, trustDomain)
	client, server := m.Pod("client").Start(), m.Pod("server").Start()
	echoing(server)
	conn := client.Connect(server.Addr)
	say(t, conn, "x")
	hear(t, conn, "x")
	m.SetSign(next.Fetch)
	m.SetRoots(next.Bundle(), nil)
	hearReset(t, conn)
}

// tryEcho opens a connection, and has a byte come back.
func (p *Pod) tryEcho(server *Pod) error {
	conn, err := dialFrom(p.mesh.t.Context(), p.Addr, netip.AddrPortFrom(server.Addr, p.captured))
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte{'?'}); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}
