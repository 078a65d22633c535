package redirect

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
)

// A Held is a connection that an application of the pod waits for in connect(2): its SYN is held back. The first of Pass,
// Refuse and Leave counts.
type Held struct {
	// Fixed.
	client, dst netip.AddrPort
	hold        *hold

	// Guarded by hold.mu.
	syn      syn // the last one: the application's kernel repeats it
	answered bool
}

// ends tell a pod's connections apart.
type ends struct{ client, dst netip.AddrPort }

// hold is a pod whose connections are held.
type hold struct {
	// Fixed after Hold.
	link    attachment
	sockets map[bool]*os.File // raw, by syn.is4
	clients []netip.Addr
	take    func(*Held)

	mu sync.Mutex
	// Guarded by mu.
	waiting map[ends]*Held
	letting bool // none is held any more
}

// Hold begins to hold back the SYNs of what the pod connects to, and has take called for each connection: from one goroutine
// for all pods, so that it must not wait. It is called again for a connection that was answered and repeats its SYN all the
// same: Pass was lost, or it was left. Without Hold, or if it fails, connections come to Outbound at once.
func (c *Capture) Hold(take func(*Held)) error {
	if err := c.holdBack(take); err != nil {
		return fmt.Errorf("hold connections of pod %s: %w", c.pod.UID, err)
	}
	return nil
}

func (c *Capture) holdBack(take func(*Held)) (err error) {
	r := c.redirect
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.captures[c.pod.UID] != c || c.hold != nil {
		return errors.New("the pod is not captured, or its connections are held already")
	}
	if err := r.readHeldLocked(); err != nil {
		return err
	}
	h := &hold{clients: valid(c.ip4, c.ip6), take: take, waiting: map[ends]*Held{}}
	if h.sockets, err = c.rawSockets(bpf.Mark); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.holds[c.slot].Store(nil)
			err = errors.Join(err, h.close())
		}
	}()
	program, err := r.node.LoadHold(c.steering())
	if err != nil {
		return err
	}
	defer program.Close() // its link holds it
	r.holds[c.slot].Store(h)
	if h.link, err = c.attachHold(program); err != nil {
		return err
	}
	c.hold = h
	return nil
}

// rawSockets makes the sockets by which SYNs go on and are answered, and datagrams: by whether they are of IPv4. What they send
// bears the mark; if that is Mark, it takes the route of what it stands for.
func (c *Capture) rawSockets(mark int) (_ map[bool]*os.File, err error) {
	sockets := map[bool]*os.File{}
	for _, ip := range valid(c.ip4, c.ip6) {
		family, level, option := unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_HDRINCL
		if ip.Is4() {
			family, level, option = unix.AF_INET, unix.SOL_IP, unix.IP_HDRINCL
		}
		var fd int
		err := c.pod.NetNS.Do(func() error {
			fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
			return os.NewSyscallError("socket", err)
		})
		if err == nil {
			sockets[ip.Is4()] = os.NewFile(uintptr(fd), "raw")
			err = errors.Join(setsockopt(fd, level, option, 1), setsockopt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark))
		}
		if err != nil {
			for _, s := range sockets {
				s.Close()
			}
			return nil, fmt.Errorf("make raw socket: %w", err)
		}
	}
	return sockets, nil
}

// readHeldLocked starts the one reader of the node.
func (r *Redirect) readHeldLocked() error {
	if r.held != nil {
		return nil
	}
	held, err := r.node.ReadHeld()
	if err != nil {
		return err
	}
	r.held = held
	r.reading.Go(func() {
		err := held.Run(func(next bpf.HeldSYN) {
			if h := r.holds[next.Slot%uint32(len(r.holds))].Load(); h != nil {
				h.arrive(next.Headers)
			}
		})
		if err != nil {
			r.logger.Error("connections are held in vain from here on", "error", err)
		}
	})
	return nil
}

// arrive takes a SYN that was held back: of a connection that waits already it is a repetition, which says nothing new.
func (h *hold) arrive(headers []byte) {
	syn, client, dst, ok := readSYN(headers)
	if !ok || !h.isOwn(client.Addr()) {
		return // of a pod that had the slot before
	}
	h.mu.Lock()
	key := ends{client, dst}
	held, known := h.waiting[key]
	if !known {
		held = &Held{client: client, dst: dst, hold: h}
	}
	held.syn = syn
	if h.letting {
		h.mu.Unlock()
		h.send(syn, syn.complete())
		return
	}
	h.waiting[key] = held
	h.mu.Unlock()
	if !known {
		h.take(held)
	}
}

func (h *hold) isOwn(client netip.Addr) bool {
	for _, own := range h.clients {
		if own == client {
			return true
		}
	}
	return false
}

// Ends are the connection's as the application sees them: its own, and the destination. IPv4 addresses are never mapped ones.
func (h *Held) Ends() (client, dst netip.AddrPort) { return h.client, h.dst }

// Pass lets the connection go on to Outbound, where it is accepted at once.
func (h *Held) Pass() error {
	syn, ok := h.answer()
	if !ok {
		return nil
	}
	if err := h.hold.send(syn, syn.complete()); err != nil {
		return fmt.Errorf("pass connection from %s to %s: %w", h.client, h.dst, err)
	}
	return nil
}

// unreachablePause is how long an application is given to go to sleep before an ICMP message wakes it. For IPv4 the kernel puts
// the message into the socket's error queue first, and only then sets its error: who comes to poll(2) between the two finds an
// event and no error, and takes that for a connection. From sleep nobody is there that fast.
const unreachablePause = 100 * time.Microsecond

// Refuse fails the application's connect(2): with errno if it is one that a network can cause, else with ECONNREFUSED. It may
// take a moment.
func (h *Held) Refuse(errno unix.Errno) error {
	syn, ok := h.answer()
	if !ok {
		return nil
	}
	packet := syn.refusal(errno)
	if syn.is4() && packet[9] == unix.IPPROTO_ICMP {
		time.Sleep(unreachablePause)
	}
	if err := h.hold.send(syn, packet); err != nil {
		return fmt.Errorf("refuse connection from %s to %s: %w", h.client, h.dst, err)
	}
	return nil
}

// Leave says nothing to the application, which repeats its SYN and at last gives up.
func (h *Held) Leave() { h.answer() }

// answer takes the connection from those that wait.
func (h *Held) answer() (syn, bool) {
	h.hold.mu.Lock()
	defer h.hold.mu.Unlock()
	if h.answered {
		return nil, false
	}
	h.answered = true
	delete(h.hold.waiting, ends{h.client, h.dst})
	return h.syn, true
}

// refusal is the packet by which connect(2) fails with errno.
func (s syn) refusal(errno unix.Errno) []byte {
	switch {
	case errno == unix.EHOSTUNREACH && s.is4():
		return s.unreachable(icmp4Host)
	case errno == unix.ENETUNREACH && s.is4():
		return s.unreachable(icmp4Network)
	case errno == unix.EHOSTUNREACH:
		return s.unreachable(icmp6Address)
	case errno == unix.ENETUNREACH:
		return s.unreachable(icmp6NoRoute)
	case errno == unix.EACCES && !s.is4():
		return s.unreachable(icmp6Forbidden)
	}
	return s.reset()
}

// send puts a packet, in answer to s or s itself, on its way within the pod.
func (h *hold) send(s syn, packet []byte) error {
	return sendBy(h.sockets[s.is4()], packet)
}

// sendBy sends a packet by a raw socket of its family.
func sendBy(socket *os.File, packet []byte) error {
	to := packetDestination(packet)
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) {
		// The destination's port is the protocol to a raw socket of IPv6: none, for the header has it.
		sent = os.NewSyscallError("sendto", unix.Sendto(int(fd), packet, 0, sockaddr(netip.AddrPortFrom(to, 0))))
	}); err != nil {
		return err
	}
	return sent
}

func packetDestination(packet []byte) netip.Addr {
	_, to := syn(packet).addresses()
	ip, _ := netip.AddrFromSlice(to)
	return ip
}

// let ends the holding, with those that wait on their way to Outbound.
func (h *hold) let() error {
	err := h.link.Detach()
	h.mu.Lock()
	h.letting = true
	waiting := make([]*Held, 0, len(h.waiting))
	for _, held := range h.waiting {
		waiting = append(waiting, held)
	}
	h.mu.Unlock()
	errs := []error{err}
	for _, held := range waiting {
		errs = append(errs, held.Pass())
	}
	return errors.Join(errs...)
}

func (c *Capture) stopHolding() error {
	c.redirect.mu.Lock()
	defer c.redirect.mu.Unlock()
	if c.hold == nil {
		return nil
	}
	return c.hold.let()
}

func (c *Capture) closeHoldLocked() error {
	if c.hold == nil {
		return nil
	}
	c.redirect.holds[c.slot].Store(nil)
	return c.hold.close()
}

// close ends this process's part. What is pinned goes on to hold as long as there is a listener.
func (h *hold) close() error {
	var errs []error
	for _, s := range h.sockets {
		errs = append(errs, s.Close())
	}
	if h.link != nil {
		errs = append(errs, h.link.Close())
	}
	return errors.Join(errs...)
}
