package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/netnstest"
	"github.com/ambit-mesh/ambit/ztunnel/route"
)

const (
	lossyConns = 32
	lossyBytes = 1 << 20

	begun     = "begun"
	recovered = "recovered"
	silence   = "silence"
	noise     = "noise"

	// noticed is how long a silent peer may stay unnoticed: until the next ping is due (10 s), and its answer is (20 s).
	noticed = 45 * time.Second
)

func wireScripts() []script {
	return []script{
		{
			name: "transfers", client: transferAll, server: answerAll,
			wants: sights{fmt.Sprintf("%d intact", lossyConns), fmt.Sprintf("%d intact", lossyConns)},
		},
		{
			name: "a bad moment", client: talkThroughBadMoment, server: answerThroughBadMoment,
			wants: sights{client: "all came back"},
		},
		{
			name: "silence", client: keepSilent, server: keepSilent,
			wants: sights{"alive, probes answered", "alive, probes answered"},
		},
		{
			name: "vanishing peer", client: awaitError, server: awaitError,
			wants: sights{"0 bytes then ECONNRESET", "0 bytes then ECONNRESET"},
		},
	}
}

// transferAll opens all connections at once: on each, as much comes back as went.
func transferAll(a *actor) {
	conns := a.converseMany(lossyConns)
	a.must(concurrently(lossyConns, func(i int) error {
		defer conns[i].Close()
		sent := make(chan error, 1)
		go func() {
			_, err := io.CopyN(conns[i], pattern(), lossyBytes)
			sent <- errors.Join(err, conns[i].CloseWrite())
		}()
		n, damage, err := compare(conns[i])
		if n != lossyBytes || damage || !errors.Is(err, io.EOF) {
			return fmt.Errorf("got %d bytes, damage %t: %w", n, damage, err)
		}
		return <-sent
	}))
	a.see("%d intact", lossyConns)
}

func answerAll(a *actor) { transferAll(a) }

// badMoment is how long the wire is at its worst.
const badMoment = 2 * time.Second

// talkThroughBadMoment goes on talking all the while and for as long again.
func talkThroughBadMoment(a *actor) {
	c := a.converse()
	a.meet(begun)
	b := make([]byte, 4<<10)
	for start := time.Now(); time.Since(start) < 2*badMoment; {
		a.write(c, b)
		_, err := io.ReadFull(c, b)
		a.must(err)
	}
	c.Close()
	a.see("all came back")
	a.meet(recovered)
}

func answerThroughBadMoment(a *actor) {
	c := a.converse()
	a.meet(begun)
	_, err := io.Copy(c, c)
	a.must(err)
	c.Close()
	a.meet(recovered)
}

// keepSilent says nothing for a long time, but for the probes that the kernel sends once a second because the application
// asked for them.
func keepSilent(a *actor) {
	c := a.converse()
	defer c.Close()
	a.control(c, func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3))
	})
	a.meet(silence) // the test waits here
	var info *unix.TCPInfo
	a.control(c, func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	a.meet(noise)
	c.SetDeadline(time.Now().Add(patience))
	a.write(c, []byte("still there?"))
	_, err := io.ReadFull(c, make([]byte, len("still there?")))
	a.must(err)
	a.see("alive")
	if last := time.Duration(info.Last_ack_recv) * time.Millisecond; last > 3*time.Second {
		a.see("last answer to a probe %s ago", last)
		return
	}
	a.see("probes answered")
}

func awaitError(a *actor) {
	c := a.converse()
	a.meet(silence)
	c.SetDeadline(time.Now().Add(noticed))
	a.seeEnd(c)
}

// beginSilence has a connection on every path fall silent, and a peer vanish; what it returns is to be called when others have
// had their say. The silent connections live on, though everything is over by then that bounds their setup, and the one whose
// peer is gone has ended with an error at both of its ends.
func (b *bed) beginSilence(t *testing.T) (end func(*testing.T)) {
	idle, vanishing := b.paths(nil), b.path(hbonePath, nil)
	over := make(chan struct{})
	var waiting sync.WaitGroup
	for _, p := range idle {
		waiting.Go(func() {
			saw, err := p.tryPlay("silence", p.to(), map[string]func(){silence: func() { <-over }})
			if want := named("silence").wants; saw != want || err != nil {
				t.Errorf("%s: saw %+v, %v, want %+v", p.name, saw, err, want)
			}
		})
	}
	var vanished sync.WaitGroup
	vanished.Go(func() {
		var start time.Time
		saw, err := vanishing.tryPlay("vanishing peer", vanishing.to(), map[string]func(){silence: func() {
			start = time.Now()
			vanishing.server.pod.Unplug()
		}})
		t.Logf("vanished peer noticed after %s", time.Since(start))
		if want := named("vanishing peer").wants; saw != want || err != nil {
			t.Errorf("vanished peer: saw %+v, %v, want %+v", saw, err, want)
		}
	})
	return func(t *testing.T) {
		t.Helper()
		vanished.Wait()
		close(over)
		waiting.Wait()
	}
}

// A wire that loses one packet in a hundred slows connections down, and does nothing else to them.
func testLosses(t *testing.T, b *bed, paths map[string]*path) {
	for _, name := range []string{hbonePath, nonePath} {
		p := paths[name]
		t.Run("one in a hundred/"+name, func(t *testing.T) {
			losses := b.network.Lose(0.01)
			defer losses.Stop()
			p.verify(t, named("transfers"))
			wantLosses(t, losses)
		})
		t.Run("one in three for a moment/"+name, func(t *testing.T) {
			var losses *netnstest.Losses
			var before []netnstest.Socket
			saw := p.play(t, "a bad moment", map[string]func(){
				begun: func() {
					before, losses = p.tunnels(), b.network.Lose(0.3)
					t.Cleanup(losses.Stop)
					time.AfterFunc(badMoment, losses.Stop)
				},
				recovered: func() {
					if after := p.tunnels(); !slices.Equal(before, after) {
						t.Errorf("tunnels %v became %v", before, after)
					}
				},
			})
			if want := (sights{client: "all came back"}); saw != want {
				t.Errorf("saw %+v, want %+v", saw, want)
			}
			wantLosses(t, losses)
		})
	}
}

func wantLosses(t *testing.T, losses *netnstest.Losses) {
	t.Helper()
	lost, err := losses.Packets()
	if err != nil || lost == 0 {
		t.Errorf("%d packets lost, %v: nothing was tested", lost, err)
	}
	t.Logf("%d packets lost", lost)
}

// tunnels are the connections that the client's pod has to the other node's ztunnel.
func (p *path) tunnels() []netnstest.Socket {
	all := p.client.pod.Sockets()
	all = slices.DeleteFunc(all, func(s netnstest.Socket) bool { return s.Remote.Port() != route.HBONEPort })
	slices.SortFunc(all, func(a, b netnstest.Socket) int { return a.Local.Compare(b.Local) })
	return all
}

// Pods of clusters whose network has a small MTU, and of those with jumbo frames on a wire that does not carry them.
func testMTU(t *testing.T, b *bed, _ map[string]*path) {
	for _, mtu := range []int{1280, 9000} {
		paths := b.paths(func(pod *netnstest.Pod) { pod.SetMTU(mtu) })
		eachPath(t, paths, func(t *testing.T, p *path) {
			for _, name := range []string{"close right after writing/by client", "close right after writing/by server", "writes of odd sizes/by client"} {
				t.Run(fmt.Sprintf("%d/%s", mtu, name), func(t *testing.T) { p.verify(t, named(name)) })
			}
		})
	}
}
