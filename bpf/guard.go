package bpf

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A Guard is what may leave a captured pod. The zero Guard lets everything.
type Guard struct {
	// Strict lets TCP leave from ztunnel's sockets, and in answer to the node.
	Strict bool
	// Grace is how much longer the connections leave that were listed by AddPrecapture.
	Grace time.Duration
}

// A GuardPlace is what a guard program is loaded with.
type GuardPlace struct {
	// Cookie of the pod's network namespace.
	Cookie uint64
	// OnNode is at the node's end of a link of the pod: there NetNS is the number that the node's namespace has for the pod's.
	OnNode bool
	NetNS  int32
	// Last is where no other guard of the pod sees what this one lets pass: there is told what policies on trial would have dropped.
	Last bool
	// Ethernet is whether packets begin with an Ethernet header, and not with one of IP.
	Ethernet bool
}

// GuardName is the name of every guard program, by which it is told apart from what others attach.
const GuardName = "guard_tc"

// here is BPF_F_CURRENT_NETNS.
const here = -1

// LoadGuard loads a guard program. The caller closes it.
func (n *Node) LoadGuard(p GuardPlace) (*ebpf.Program, error) {
	netns := int32(here)
	if p.OnNode {
		netns = p.NetNS
	}
	var programs guardPrograms
	err := n.loadPod(n.guard, &programs, map[string]any{
		guardVarCookie:   p.Cookie,
		guardVarNetns:    netns,
		guardVarOnNode:   p.OnNode,
		guardVarLast:     p.Last,
		guardVarEthernet: p.Ethernet,
	})
	if err != nil {
		return nil, fmt.Errorf("load guard: %w", err)
	}
	return programs.GuardTc, nil
}

// ID is the kernel's number of a map that every program of the node uses, and no program of another node or layout.
func (n *Node) ID() ebpf.MapID { return n.id }

// SetGuard says what may leave the pod whose namespace has this cookie, wherever its guard is attached, in one step.
func (n *Node) SetGuard(cookie uint64, g Guard) error {
	var value guardGuard
	if g.Strict {
		value.Flags |= uint32(guardGuardFlagGUARD_STRICT)
	}
	if g.Grace > 0 {
		now, err := monotonic()
		if err != nil {
			return err
		}
		value.Grace = uint64(now + g.Grace)
	}
	return n.maps[guardMapMeshGuards].Put(cookie, value)
}

// Guard returns what may leave a pod; false if nothing was said, or not since RemoveGuard.
func (n *Node) Guard(cookie uint64) (Guard, bool, error) {
	var value guardGuard
	if err := n.maps[guardMapMeshGuards].Lookup(cookie, &value); err != nil {
		return Guard{}, false, ignoreMissing(err)
	}
	g := Guard{Strict: value.Flags&uint32(guardGuardFlagGUARD_STRICT) != 0}
	if value.Grace != 0 {
		now, err := monotonic()
		if err != nil {
			return Guard{}, false, err
		}
		g.Grace = max(0, time.Duration(value.Grace)-now)
	}
	return g, true, nil
}

// RemoveGuard ends what SetGuard and SetEgress said, and whatever was allowed. To remove what is not there is no error.
func (n *Node) RemoveGuard(cookie uint64) error {
	return errors.Join(ignoreMissing(n.maps[guardMapMeshGuards].Delete(cookie)), n.forgetEgress(cookie))
}

// TagsFD is the file descriptor of the map that Tag writes, which stays the Node's.
func (n *Node) TagsFD() int { return n.maps[guardMapMeshOwn].FD() }

// AddPrecapture lists a socket, by its cookie, as connected before the pod of this namespace was captured.
func (n *Node) AddPrecapture(socket, cookie uint64) error {
	return n.maps[guardMapMeshPrecapture].Put(socket, cookie)
}

// RemovePrecapture ends what AddPrecapture began.
func (n *Node) RemovePrecapture(socket uint64) error {
	return ignoreMissing(n.maps[guardMapMeshPrecapture].Delete(socket))
}

// Precapture returns the cookies of the sockets that are listed for a pod.
func (n *Node) Precapture(cookie uint64) ([]uint64, error) {
	var sockets []uint64
	var socket, pod uint64
	entries := n.maps[guardMapMeshPrecapture].Iterate()
	for entries.Next(&socket, &pod) {
		if pod == cookie {
			sockets = append(sockets, socket)
		}
	}
	return sockets, entries.Err()
}

// monotonic is the time by the clock that the programs look at.
func monotonic() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	return time.Duration(now.Nano()), nil
}
