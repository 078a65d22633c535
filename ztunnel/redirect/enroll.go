package redirect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/podns"
	"github.com/ambit-mesh/ambit/ztunnel/sockdiag"
)

// A Pod is what is to be captured.
type Pod struct {
	UID string
	// NetNS is the pod's namespace. The caller closes it, after Release and the last Dial.
	NetNS *podns.NetNS
	// IPs are the pod's addresses: one, or one of each family.
	IPs []netip.Addr
	// DNS says that what the pod asks other hosts' DNS servers is captured too.
	DNS bool
	// Strict is for a pod whose applications have not started: it is guarded from the first moment. Without it a pod starts as an
	// earlier process left it, and else permissive.
	Strict bool
	// EgressDenied is the same for the pod's way out of the mesh: nothing that SetEgress denies leaves.
	EgressDenied bool
}

// addresses returns the pod's address of each family, the zero Addr for none.
func (p Pod) addresses() (ip4, ip6 netip.Addr, err error) {
	for _, ip := range p.IPs {
		ip = ip.Unmap()
		of := &ip6
		if ip.Is4() {
			of = &ip4
		}
		if !ip.IsValid() || of.IsValid() {
			return ip4, ip6, fmt.Errorf("pod %s: addresses %s: want one of each family at most", p.UID, join(p.IPs))
		}
		*of = ip
	}
	if len(p.IPs) == 0 {
		return ip4, ip6, fmt.Errorf("pod %s has no address", p.UID)
	}
	return ip4, ip6, nil
}

// check refuses what must not be paired: a namespace that is the node's or lacks the pod's addresses.
func (p Pod) check(hostCookie uint64) error {
	// The UID names a folder of a BPF file system, which takes no dots.
	if p.UID == "" || len(p.UID) > bpf.MaxUID || strings.ContainsAny(p.UID, "/.") {
		return fmt.Errorf("pod UID %q cannot be pinned", p.UID)
	}
	if p.NetNS.Cookie() == hostCookie {
		return &HostNamespace{UID: p.UID, NetNS: p.NetNS.Path()}
	}
	have, err := p.NetNS.Addrs()
	if err != nil {
		return err
	}
	for _, ip := range p.IPs {
		if !slices.Contains(have, ip.Unmap()) {
			return &AddressMismatch{UID: p.UID, NetNS: p.NetNS.Path(), Want: p.IPs, Have: have}
		}
	}
	return nil
}

// Enroll captures a pod. One that is captured already is returned as it is, one that an earlier process captured is taken
// over: its connections are refused, never passed by, until the new listeners stand. An error leaves things as they were.
// It takes about as long as 25 ms, three seconds if an IPv6 address of the pod is still tentative.
func (r *Redirect) Enroll(ctx context.Context, pod Pod) (*Capture, error) {
	ip4, ip6, err := pod.addresses()
	if err != nil {
		return nil, err
	}
	if err := pod.check(r.hostCookie); err != nil {
		return nil, err
	}
	// Inert, and it may have to wait: before the lock.
	if err := routeMarked(ctx, pod.NetNS, r.config.Procfs, valid(ip4, ip6), pod.DNS); err != nil {
		return nil, fmt.Errorf("capture pod %s: %w", pod.UID, explain("The kernel does not let ztunnel route in a pod.", err))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.captures[pod.UID]; ok {
		if c.pod.NetNS.Cookie() == pod.NetNS.Cookie() && c.ip4 == ip4 && c.ip6 == ip6 {
			return c, nil
		}
		return nil, fmt.Errorf("pod %s is captured in another network namespace or with other addresses", pod.UID)
	}
	slot := slices.Index(r.slots[:], false)
	if slot < 0 {
		return nil, fmt.Errorf("pod %s: %d pods are captured already", pod.UID, bpf.MaxPods)
	}
	c := &Capture{redirect: r, pod: pod, ip4: ip4, ip6: ip6, slot: uint32(slot), guard: newGuard(), older: precapture{sockets: map[uint64]sockdiag.Socket{}}}
	if err := c.captureLocked(); err != nil {
		return nil, fmt.Errorf("capture pod %s: %w", pod.UID, explain("The kernel does not let ztunnel capture a pod.", err))
	}
	r.slots[slot] = true
	r.captures[pod.UID] = c
	if err := c.listPrecapture(); err != nil {
		r.logger.Error("connections older than the capture are not known: should the pod turn strict, they end without grace", "pod_uid", pod.UID, "error", err)
	}
	if err := r.supersedeLocked(pod); err != nil {
		r.logger.Warn("pins of an earlier capture remain", "pod_uid", pod.UID, "error", err)
	}
	return c, nil
}

// captureLocked goes through the steps that the package comment names.
func (c *Capture) captureLocked() (err error) {
	node := c.redirect.node
	defer func() {
		if err != nil {
			err = errors.Join(err, c.closeListeners())
		}
	}()
	if err := c.listen(); err != nil {
		return err
	}
	steer, err := node.LoadSteer(c.steering())
	if err != nil {
		return err
	}
	defer steer.Close() // its link holds it
	for kind, l := range c.listeners() {
		if err := control(l, func(fd int) error { return node.SetListener(c.slot, kind, fd) }); err != nil {
			return fmt.Errorf("set listener: %w", err)
		}
	}
	if !c.pod.DNS { // an earlier process may have captured it
		if err := c.stopDNS(); err != nil {
			return err
		}
	}
	if err := c.raiseGuard(); err != nil {
		return err
	}
	if err := c.flipLocked(steer); err != nil {
		return errors.Join(err, c.lowerGuard())
	}
	return nil
}

func (c *Capture) steering() bpf.Steering {
	return bpf.Steering{IPv4: c.ip4, IPv6: c.ip6, Slot: c.slot, Ports: c.ports, DNS: c.pod.DNS}
}

// flipLocked takes the steps that are not inert, and undoes them on error, unless an earlier process had taken them.
func (c *Capture) flipLocked(steer *ebpf.Program) (err error) {
	r, cookie := c.redirect, c.pod.NetNS.Cookie()
	left := r.adopted[c.pod.UID]
	enrolledBefore := left != nil && left.cookie == cookie
	for _, ip := range valid(c.ip4, c.ip6) {
		if err := r.node.AddPod(ip, cookie); err != nil {
			return fmt.Errorf("add address %s: %w", ip, err)
		}
		defer func() {
			if err != nil && !enrolledBefore {
				err = errors.Join(err, r.node.RemovePod(ip, cookie))
			}
		}()
	}
	var adopted bool
	if c.steer, adopted, err = r.pins.attachPod(c.pod.UID, c.pod.NetNS, steer); err != nil {
		return err
	}
	if err = c.beginDNS(); err == nil {
		err = r.node.Enrol(cookie, bpf.Enrolment{UID: c.pod.UID, IPv4: c.ip4, IPv6: c.ip6})
	}
	if err != nil {
		err = fmt.Errorf("enrol namespace: %w", err)
		err = errors.Join(err, c.steer.Close(), c.closeDNS())
		if !adopted {
			err = errors.Join(err, r.pins.removePod(c.pod.UID))
		}
		return err
	}
	return nil
}

func (c *Capture) listen() error {
	places := map[bpf.Listener]**net.TCPListener{
		bpf.Outbound: &c.Outbound, bpf.Plaintext: &c.Plaintext, bpf.HBONE: &c.HBONE,
	}
	if c.pod.DNS {
		places[bpf.DNSStream] = &c.DNSStream
		if err := c.listenDatagrams(); err != nil {
			return err
		}
	}
	for kind, place := range places {
		l, err := c.redirect.listen(c.pod.NetNS, preferredPorts[kind])
		if err != nil {
			return err
		}
		*place = l
		c.ports[kind] = uint16(l.Addr().(*net.TCPAddr).Port)
	}
	return nil
}

// supersedeLocked removes what earlier processes left of a pod that is captured now: another namespace of the same pod, and
// pins of other layouts.
func (r *Redirect) supersedeLocked(pod Pod) error {
	left, ok := r.adopted[pod.UID]
	if !ok {
		return nil
	}
	delete(r.adopted, pod.UID)
	if left.cookie != pod.NetNS.Cookie() {
		if err := r.withdrawRemainsLocked(left); err != nil {
			return err
		}
	}
	for _, other := range r.others {
		if err := other.withdraw(pod.NetNS.Cookie()); err != nil {
			return err
		}
		if err := other.removePod(pod.UID); err != nil {
			return err
		}
	}
	return r.retireLocked()
}
