package redirect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/sockdiag"
)

// A Capture is a captured pod. Its methods may be called concurrently.
//
// A connection accepted from a listener has the original destination as its local address and the client as its remote
// one; an IPv4 address comes as a mapped IPv6 one: Unmap both.
type Capture struct {
	Outbound  *net.TCPListener // what the pod connects to
	Plaintext *net.TCPListener // what connects to the pod, at any port but that of HBONE
	HBONE     *net.TCPListener // tunnels to the pod

	// What the pod asks other hosts' DNS servers; nil if that is not captured.
	DNS       *Datagrams
	DNSStream *net.TCPListener

	// Fixed after Enroll.
	redirect *Redirect
	pod      Pod
	ip4, ip6 netip.Addr // zero for none
	slot     uint32
	ports    bpf.Ports // that the listeners are bound to
	steer    link.Link
	dns      dnsPrograms

	egress sync.Mutex // whoever changes what SetEgress says

	devices *os.File // tells of changes
	guard   guard
	older   precapture

	hold *hold // guarded by redirect.mu; nil if connections are not held
}

const (
	// A connect(2) that bears the mark but has not sent its SYN yet still needs steer: between the two a busy or throttled
	// processor may do something else.
	connectTime = 300 * time.Millisecond
	// After the last connection came in by steer, handshakes are still under way: they end within a round trip, and a
	// retransmission, one second after the loss, is not worth waiting for.
	handshakeTime = 100 * time.Millisecond
	queuePause    = 5 * time.Millisecond
)

func (c *Capture) listeners() map[bpf.Listener]*net.TCPListener {
	all := map[bpf.Listener]*net.TCPListener{bpf.Outbound: c.Outbound, bpf.Plaintext: c.Plaintext, bpf.HBONE: c.HBONE, bpf.DNSStream: c.DNSStream}
	maps.DeleteFunc(all, func(_ bpf.Listener, l *net.TCPListener) bool { return l == nil })
	return all
}

func (c *Capture) closeListeners() error {
	var errs []error
	if c.DNS != nil {
		errs = append(errs, c.DNS.Close())
	}
	for _, l := range c.listeners() {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// StopOutbound lets what the pod connects to from now on go directly. Connections to the pod still come to the listeners.
func (c *Capture) StopOutbound() error {
	if err := c.redirect.node.RemoveGuard(c.pod.NetNS.Cookie()); err != nil {
		return fmt.Errorf("let go of what leaves pod %s: %w", c.pod.UID, err)
	}
	if err := c.redirect.node.Withdraw(c.pod.NetNS.Cookie()); err != nil {
		return fmt.Errorf("let go of what pod %s connects to: %w", c.pod.UID, err)
	}
	return nil
}

// Release lets the pod go: what it connects to goes directly from here on, and shortly after what connects to it. Release then
// waits until the connections that wait in the listeners are accepted, and closes the listeners. When ctx ends, it waits no
// longer. Connections that were accepted live on, and Dial and DialApp still work. To release again is no error.
func (c *Capture) Release(ctx context.Context) error {
	if !c.held() {
		return nil
	}
	if err := c.StopOutbound(); err != nil {
		return err
	}
	if err := c.stopHolding(); err != nil {
		return fmt.Errorf("let go of what is held of pod %s: %w", c.pod.UID, err)
	}
	pause(ctx, connectTime)
	if err := c.steer.Detach(); err != nil {
		return fmt.Errorf("let go of what connects to pod %s: %w", c.pod.UID, err)
	}
	c.waitForQueues(ctx)
	if err := c.forgetWaits(); err != nil {
		c.redirect.logger.Warn("clients of a pod that is let go may wait for a minute if they come from a port that was used before",
			"pod_uid", c.pod.UID, "error", err)
	}
	return c.forget()
}

// forgetWaits forgets what the pod's applications have of connections that they ended (TIME_WAIT). ztunnel had made these within
// the pod, and what answers to them stays there. A client that comes by itself now, from a port that ztunnel had given to one of
// them, is taken for a late guest: he is answered, does not hear it, and tries in vain for a minute.
func (c *Capture) forgetWaits() error {
	return c.pod.NetNS.Do(func() error {
		sockets, err := sockdiag.List(sockdiag.TimeWait, sockdiag.Listening)
		if err != nil {
			return err
		}
		served := map[uint16]bool{}
		for _, s := range sockets {
			if s.State == sockdiag.Listening {
				served[s.Local.Port()] = !c.isOwnPort(s.Local.Port())
			}
		}
		var errs []error
		for _, s := range sockets {
			if s.State == sockdiag.TimeWait && served[s.Local.Port()] {
				errs = append(errs, s.Destroy())
			}
		}
		return errors.Join(errs...)
	})
}

// held tells whether the pod is captured by this Capture.
func (c *Capture) held() bool {
	c.redirect.mu.Lock()
	defer c.redirect.mu.Unlock()
	return c.redirect.captures[c.pod.UID] == c
}

// waitForQueues returns when the queues have been empty for handshakeTime. The time is looked at after the queues: whoever is
// kept from running meanwhile must not take that for silence.
func (c *Capture) waitForQueues(ctx context.Context) {
	for quiet := time.Now(); ctx.Err() == nil; pause(ctx, queuePause) {
		var waiting uint32
		for _, l := range c.listeners() {
			waiting += queued(l)
		}
		if waiting > 0 {
			quiet = time.Now()
		} else if time.Since(quiet) >= handshakeTime {
			return
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// queued is how many connections wait to be accepted from l; none if it is closed.
func queued(l *net.TCPListener) (n uint32) {
	_ = control(l, func(fd int) error {
		state, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			n = state.Unacked // of a listening socket: its queue
		}
		return err
	})
	return n
}

func (c *Capture) forget() error {
	r := c.redirect
	r.mu.Lock()
	defer r.mu.Unlock()
	errs := []error{c.steer.Close(), c.closeHoldLocked(), c.devices.Close(), c.unguard(), c.stopDNS()}
	// Who serves them ends with them, and may close the namespace then.
	errs = append(errs, c.closeListeners())
	for _, ip := range valid(c.ip4, c.ip6) {
		errs = append(errs, r.node.RemovePod(ip, c.pod.NetNS.Cookie()))
	}
	errs = append(errs, r.pins.removePod(c.pod.UID))
	if r.captures[c.pod.UID] == c {
		delete(r.captures, c.pod.UID)
		r.slots[c.slot] = false
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("release pod %s: %w", c.pod.UID, err)
	}
	return nil
}
