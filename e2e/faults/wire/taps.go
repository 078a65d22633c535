package wire

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// Node is a machine whose links are watched.
type Node struct {
	Name string
	// Namespace is the path of its network namespace; what is there changes with
	// a power cut.
	Namespace string
	// Local are its addresses and those of its pods: what goes from pod to these
	// never comes to the switch.
	Local []netip.Prefix
}

// uplink is a machine's link to the switch.
const uplink = "eth0"

// Taps watch the switch, where all that goes from machine to machine passes, and
// every node, for what stays on it. So each packet is seen once.
type Taps struct {
	record record
	marker []byte

	mu     sync.Mutex
	taps   map[string]*running
	failed []error

	ctx   context.Context // of all taps, from Watch
	group sync.WaitGroup
}

type running struct {
	*tap
	inode uint64
	stop  context.CancelFunc
	ended chan struct{}
}

// namespacePoll is how soon a machine that was cut is watched again. No pod has
// started by then.
const namespacePoll = 20 * time.Millisecond

// Watch opens all taps. They end with ctx; Wait returns when they have.
func Watch(ctx context.Context, switchNamespace string, nodes []Node, marker string) (*Taps, error) {
	t := &Taps{marker: []byte(marker), taps: map[string]*running{}, ctx: ctx}
	// The switch's ports are named after the machines; its bridge shows some
	// packets a second time.
	port := map[string]bool{}
	for _, n := range nodes {
		port[n.Name] = true
	}
	if _, err := t.open("switch", switchNamespace, func(link string, _ Packet) bool { return port[link] }); err != nil {
		return nil, err
	}
	for _, n := range nodes {
		keep := func(link string, p Packet) bool { return link != uplink && link != "lo" && n.keeps(p) }
		if _, err := t.open(n.Name, n.Namespace, keep); err != nil {
			return nil, err
		}
		t.group.Go(func() { t.follow(n, keep) })
	}
	return t, nil
}

// keeps tells whether a packet from one of the node's pods stays on the node.
func (n Node) keeps(p Packet) bool {
	for _, local := range n.Local {
		if local.Contains(p.Destination.Addr()) {
			return true
		}
	}
	return false
}

// open watches what is at path now, if it is not watched yet.
func (t *Taps) open(name, path string, keep func(string, Packet) bool) (changed bool, err error) {
	stat, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	inode := stat.Sys().(*syscall.Stat_t).Ino
	t.mu.Lock()
	last := t.taps[name]
	t.mu.Unlock()
	if last != nil && last.inode == inode {
		return false, nil
	}
	if last != nil {
		last.stop()
		<-last.ended
	}
	opened, err := openTap(path, name, keep)
	if err != nil {
		return false, err
	}
	ctx, stop := context.WithCancel(t.ctx)
	r := &running{tap: opened, inode: inode, stop: stop, ended: make(chan struct{})}
	t.mu.Lock()
	t.taps[name] = r
	t.mu.Unlock()
	t.group.Go(func() {
		defer close(r.ended)
		defer t.forget(name, r)
		if err := r.run(ctx, t.marker, t.record.add); err != nil {
			t.fail(err)
		}
	})
	return true, nil
}

// forget closes a tap when it has ended.
func (t *Taps) forget(name string, r *running) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.taps[name] == r {
		delete(t.taps, name)
	}
	r.close()
}

// follow watches a machine anew after each power cut.
func (t *Taps) follow(n Node, keep func(string, Packet) bool) {
	for t.ctx.Err() == nil {
		if _, err := t.open(n.Name, n.Namespace, keep); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.EINVAL) {
			t.fail(err)
		}
		time.Sleep(namespacePoll)
	}
}

func (t *Taps) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = append(t.failed, err)
}

// Take returns the packets since it was called last. It fails if the taps may
// have missed one: their silence would prove nothing.
func (t *Taps) Take() ([]Packet, error) {
	t.mu.Lock()
	failed := t.failed
	t.failed = nil
	for name, r := range t.taps {
		if lost, err := r.lost(); err != nil {
			failed = append(failed, err)
		} else if lost > 0 {
			failed = append(failed, fmt.Errorf("tap %s missed %d packets", name, lost))
		}
	}
	t.mu.Unlock()
	return t.record.take(), errors.Join(failed...)
}

// Wait returns when all has ended that Watch began.
func (t *Taps) Wait() { t.group.Wait() }
