package redirect

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

// A guard is what decides about all that leaves a pod. It is attached from the capture to the release, and lets everything pass
// until the pod is strict: to turn it is to write one entry of one map, which all its sites see at once.
//
// It is at each of the pod's devices, and once more at the node's end of each link that has one there: the pod may send past the
// former (a packet socket that bypasses queueing) or take it off (with CAP_NET_ADMIN and bpf(2)), and cannot reach the latter.
type guard struct {
	mu sync.Mutex
	// Guarded by mu.
	sites    map[guardSite]numbered // attached
	oneSided []string               // devices whose other end is not in the node's namespace
	missing  *Problem               // why a site has none
	restored time.Time              // when it was last found missing where it had been
	ended    bool

	fresh bool // fixed by raiseGuard: no earlier process had said anything
}

type guardSite struct {
	index  int
	onNode bool
	last   bool // nothing of what passes here passes another guard of the pod
}

func newGuard() guard { return guard{sites: map[guardSite]numbered{}} }

// raiseGuard attaches the guard of a pod that is being captured, which changes nothing unless the pod is strict. Only a strict
// pod that is new waits for that: one that lives is not better off uncaptured.
func (c *Capture) raiseGuard() error {
	before, known, err := c.redirect.node.Guard(c.pod.NetNS.Cookie())
	if err != nil {
		return fmt.Errorf("read guard: %w", err)
	}
	if before.Strict {
		c.older.deadline = time.Now().Add(before.Grace - endingTime)
	}
	if !known {
		if err := c.redirect.node.SetGuard(c.pod.NetNS.Cookie(), bpf.Guard{Strict: c.pod.Strict}); err != nil {
			return fmt.Errorf("set guard: %w", err)
		}
	}
	c.guard.fresh = !known
	if err := c.raiseEgress(known); err != nil {
		return errors.Join(err, c.lowerGuard())
	}
	if err := c.watchDevices(); err != nil {
		return errors.Join(err, c.lowerGuard())
	}
	if err := c.guardNow(); err != nil && c.guard.fresh && (c.pod.Strict || c.pod.EgressDenied) {
		return errors.Join(err, c.lowerGuard())
	}
	return nil
}

// lowerGuard undoes raiseGuard.
func (c *Capture) lowerGuard() error {
	var errs []error
	if c.devices != nil {
		errs = append(errs, c.devices.Close())
	}
	if c.guard.fresh {
		return errors.Join(append(errs, c.unguard())...)
	}
	return errors.Join(append(errs, c.closeGuard())...)
}

// SetStrict says whether TCP leaves the pod from ztunnel's sockets alone, and in answer to the node. It holds from the moment at
// which SetStrict returns until it is called again or the pod is released, whatever becomes of the process. Connections that were
// there when the pod was captured may go on for grace; then they are ended. To say the same again changes nothing, the end of the
// grace included.
func (c *Capture) SetStrict(strict bool, grace time.Duration) error {
	is, err := c.Strict()
	if err != nil {
		return err
	}
	if is != strict {
		// First: what is attached shall not wait for what cannot be.
		if err := c.turn(strict, grace); err != nil {
			return fmt.Errorf("guard pod %s: %w", c.pod.UID, err)
		}
	}
	if !strict {
		return nil
	}
	c.endOlder()
	return c.guardNow()
}

func (c *Capture) turn(strict bool, grace time.Duration) error {
	c.older.mu.Lock()
	defer c.older.mu.Unlock()
	g, deadline := bpf.Guard{Strict: strict}, time.Time{}
	if strict {
		g.Grace, deadline = grace+endingTime, time.Now().Add(grace)
	}
	if err := c.redirect.node.SetGuard(c.pod.NetNS.Cookie(), g); err != nil {
		return err
	}
	c.older.deadline = deadline
	return nil
}

// Strict tells what SetStrict said last, of whatever process.
func (c *Capture) Strict() (bool, error) {
	g, _, err := c.redirect.node.Guard(c.pod.NetNS.Cookie())
	if err != nil {
		return false, fmt.Errorf("read guard of pod %s: %w", c.pod.UID, err)
	}
	return g.Strict, nil
}

// guardNow attaches the guard wherever it is not.
func (c *Capture) guardNow() error {
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	if c.guard.ended || c.redirect.ceded.Load() {
		return nil
	}
	err := c.guardLocked()
	if c.guard.missing = nil; err != nil {
		c.guard.missing = &Problem{
			Code:   GuardMissing,
			Detail: fmt.Sprintf("What leaves pod %s is not guarded everywhere.", c.pod.UID),
			Fix:    "Run this node on Linux 6.6 or newer, or with the kernel modules sch_ingress and cls_bpf; look for programs that others attach to the pod's devices.",
			Err:    err,
		}
		return c.guard.missing
	}
	return nil
}

// OneSided returns the names of the pod's devices whose other end is not in the node's namespace: there the pod's end alone is
// guarded.
func (c *Capture) OneSided() []string {
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	return slices.Clone(c.guard.oneSided)
}

func (c *Capture) guardLocked() error {
	inside, err := devicesOf(c.pod.NetNS)
	if err != nil {
		return err
	}
	c.guard.oneSided = nil
	there := map[guardSite]bool{}
	var errs []error
	for _, device := range inside {
		other, err := c.otherEnd(device)
		at := guardSite{index: device.Attrs().Index, last: err == nil && other == nil}
		there[at] = true
		errs = append(errs, c.putGuard(at, device))
		if err != nil {
			errs = append(errs, err)
		} else if other == nil {
			c.guard.oneSided = append(c.guard.oneSided, device.Attrs().Name)
		} else {
			at := guardSite{index: other.Attrs().Index, onNode: true, last: true}
			there[at] = true
			errs = append(errs, c.putGuard(at, other))
		}
	}
	for at, program := range c.guard.sites {
		if !there[at] { // with its device, or in place of it there is another
			program.Close()
			delete(c.guard.sites, at)
		}
	}
	return errors.Join(errs...)
}

// devicesOf returns the devices by which something may leave a namespace: all but its lo.
func devicesOf(netns *podns.NetNS) (devices []netlink.Link, err error) {
	err = netns.Do(func() error {
		all, err := netlink.LinkList()
		for _, l := range all {
			if l.Attrs().Index != loopback {
				devices = append(devices, l)
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list devices of network namespace %s: %w", netns.Path(), err)
	}
	return devices, nil
}

// otherEnd returns the node's end of a pod's device; nil if there is none.
func (c *Capture) otherEnd(device netlink.Link) (other netlink.Link, err error) {
	kind := device.Type()
	if kind != "veth" && kind != "netkit" || device.Attrs().ParentIndex == 0 {
		return nil, nil
	}
	id, err := c.numberOnNode()
	if err != nil {
		return nil, err
	}
	err = c.redirect.host.Do(func() error {
		l, err := netlink.LinkByIndex(device.Attrs().ParentIndex)
		var none netlink.LinkNotFoundError
		if errors.As(err, &none) {
			return nil
		}
		if err != nil {
			return err
		}
		// The number alone may be that of another device, of a namespace that is not the node's.
		if l.Type() == kind && l.Attrs().ParentIndex == device.Attrs().Index && l.Attrs().NetNsID == id {
			other = l
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find the node's end of %s of pod %s: %w", device.Attrs().Name, c.pod.UID, err)
	}
	return other, nil
}

// numberOnNode is the number by which the node's namespace knows the pod's.
func (c *Capture) numberOnNode() (id int, err error) {
	err = c.pod.NetNS.Control(func(fd int) error {
		return c.redirect.host.Do(func() (err error) {
			if id, err = netlink.GetNetNsIdByFd(fd); err != nil || id >= 0 {
				return err
			}
			const any = -1
			if err := netlink.SetNetNsIdByFd(fd, any); err != nil {
				return err
			}
			id, err = netlink.GetNetNsIdByFd(fd)
			return err
		})
	})
	if err != nil {
		return 0, fmt.Errorf("number the namespace of pod %s: %w", c.pod.UID, err)
	}
	return id, nil
}

func (c *Capture) putGuard(at guardSite, device netlink.Link) error {
	program, attached := c.guard.sites[at]
	if !attached {
		var err error
		if program, err = c.loadGuard(at, device); err != nil {
			return err
		}
	}
	changed, err := c.site(at).put(program, bpf.GuardName, c.redirect.node.ID(), c.redirect.withoutTCX)
	if errors.Is(err, errDisplaced) {
		program.Close()
		if program, err = c.loadGuard(at, device); err != nil {
			delete(c.guard.sites, at)
			return err
		}
		changed, err = c.site(at).put(program, bpf.GuardName, c.redirect.node.ID(), c.redirect.withoutTCX)
	}
	if err != nil {
		program.Close()
		delete(c.guard.sites, at)
		return err
	}
	c.guard.sites[at] = program
	if attached && changed {
		c.guard.restored = time.Now()
		c.redirect.logger.Warn("guard of a pod was taken off, and is there again",
			"pod_uid", c.pod.UID, "device", device.Attrs().Name, "on_node", at.onNode)
	}
	return nil
}

func (c *Capture) site(at guardSite) site {
	if at.onNode {
		return site{netns: c.redirect.host, index: at.index, ingress: true}
	}
	return site{netns: c.pod.NetNS, index: at.index}
}

func (c *Capture) loadGuard(at guardSite, device netlink.Link) (numbered, error) {
	place := bpf.GuardPlace{
		Cookie: c.pod.NetNS.Cookie(), OnNode: at.onNode, Last: at.last, Ethernet: device.Attrs().EncapType == "ether",
	}
	if at.onNode {
		id, err := c.numberOnNode()
		if err != nil {
			return numbered{}, err
		}
		place.NetNS = int32(id)
	}
	program, err := c.redirect.node.LoadGuard(place)
	if err != nil {
		return numbered{}, err
	}
	return number(program)
}

// unguard ends the guard of a pod that is let go.
func (c *Capture) unguard() error {
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	errs := []error{c.redirect.node.RemoveGuard(c.pod.NetNS.Cookie()), c.forgetOlder()}
	for at, program := range c.guard.sites {
		errs = append(errs, c.site(at).clear(bpf.GuardName, c.redirect.node.ID()), program.Close())
	}
	c.guard.ended = true
	clear(c.guard.sites)
	return errors.Join(errs...)
}

// closeGuard lets go of what stays attached.
func (c *Capture) closeGuard() error {
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	var errs []error
	for _, program := range c.guard.sites {
		errs = append(errs, program.Close())
	}
	c.guard.ended = true
	clear(c.guard.sites)
	return errors.Join(errs...)
}
