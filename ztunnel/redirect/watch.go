package redirect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

const (
	// guardCheck is how soon a guard is there again that was taken off a strict pod without a word.
	guardCheck = 500 * time.Millisecond
	// Where nothing is held back yet it is looked for less often, and so for what has ended: every so many times.
	permissiveChecks = 10
)

// watch looks after what is attached until the Redirect is closed.
func (r *Redirect) watch() {
	ticker := time.NewTicker(guardCheck)
	defer ticker.Stop()
	for round := 0; ; round++ {
		select {
		case <-r.closing:
			return
		case <-ticker.C:
		}
		if r.ceded.Load() {
			return
		}
		r.lookForKubelet()
		r.lookAfterHooks()
		r.lookAfterPins()
		for _, c := range r.snapshot() {
			c.endOlder()
			seldom := round%permissiveChecks == 0
			if seldom || c.holdsBack() {
				c.check()
			}
			if seldom {
				c.prune()
			}
		}
	}
}

// holdsBack tells whether the guard does anything.
func (c *Capture) holdsBack() bool {
	strict, err := c.Strict()
	if err != nil || strict {
		return true
	}
	denied, err := c.EgressDenied()
	return err != nil || denied
}

// snapshot returns the captures of now.
func (r *Redirect) snapshot() []*Capture {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*Capture, 0, len(r.captures))
	for _, c := range r.captures {
		all = append(all, c)
	}
	return all
}

// check has the guard attached wherever it is not, and what captures DNS. What cannot be stays a problem of the node.
func (c *Capture) check() {
	// First: the guard lets questions to DNS servers pass that are turned round after it.
	hadDNS := c.dnsProblem() == nil
	if err := c.attachDNS(); hadDNS != (err == nil) {
		if err = errors.Join(err, c.letDNS()); err != nil && c.held() {
			c.redirect.logger.Error("what a pod asks DNS servers is not captured everywhere", "pod_uid", c.pod.UID, "error", err)
		}
	}
	before := c.guardProblem()
	err := c.guardNow()
	if err != nil && before == nil && c.held() {
		c.redirect.logger.Error("pod is not guarded everywhere", "pod_uid", c.pod.UID, "error", err)
	}
}

func (c *Capture) guardProblem() *Problem {
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	return c.guard.missing
}

// watchDevices checks the guard at each change of the pod's devices, and of the filters at them, and puts back the way to ztunnel
// whenever a part of it is deleted, until the socket is closed.
func (c *Capture) watchDevices() error {
	socket, err := notices(c.pod.NetNS)
	if err != nil {
		return fmt.Errorf("watch devices: %w", err)
	}
	c.devices = socket
	c.redirect.reading.Go(func() {
		some := make([]byte, 1<<16)
		for lastFailed := false; ; {
			n, err := socket.Read(some)
			lost := errors.Is(err, unix.ENOBUFS) // some of it: any of it
			if err != nil && !lost || c.redirect.ceded.Load() {
				return
			}
			devices, route := changes(some[:max(n, 0)])
			if devices || lost {
				c.check()
			}
			if route || lost {
				err := c.checkRoute()
				if err != nil && !lastFailed && c.held() {
					c.redirect.logger.Error("the way of a pod's connections to ztunnel is gone", "pod_uid", c.pod.UID, "error", err)
				}
				lastFailed = err != nil
			}
		}
	})
	return nil
}

// changes tells what messages are about. What is changed is looked for, not read; of routes and rules only deletions matter,
// since to put them back is a change as well.
func changes(messages []byte) (devices, route bool) {
	for len(messages) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(messages))
		switch kind := binary.NativeEndian.Uint16(messages[4:]); kind {
		case unix.RTM_DELRULE, unix.RTM_DELROUTE:
			route = true
		case unix.RTM_NEWRULE, unix.RTM_NEWROUTE:
		default:
			devices = true
		}
		if size = (size + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1); size < unix.NLMSG_HDRLEN || size > len(messages) {
			break
		}
		messages = messages[size:]
	}
	return devices, route
}

// checkRoute puts back the rule and the routes by which marked packets come to ztunnel: an application with CAP_NET_ADMIN may
// delete them, and in a strict pod nothing would leave it then. Those of an address that is gone too have gone with the pod.
func (c *Capture) checkRoute() error {
	have, err := c.pod.NetNS.Addrs()
	if err != nil {
		return err
	}
	ips := slices.DeleteFunc(valid(c.ip4, c.ip6), func(ip netip.Addr) bool { return !slices.Contains(have, ip) })
	return routeMarked(context.Background(), c.pod.NetNS, c.redirect.config.Procfs, ips, c.pod.DNS)
}

// notices opens what the kernel tells of a namespace's devices and filters, rules and routes.
func notices(netns *podns.NetNS) (socket *os.File, err error) {
	// RTMGRP_LINK, RTMGRP_TC, and of IPv4 and IPv6 RTMGRP_..._ROUTE and RTNLGRP_..._RULE.
	const groups = 1 | 1<<3 | 1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV4_RULE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_RULE-1)
	err = netns.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		socket = os.NewFile(uintptr(fd), "notices")
		return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}))
	})
	if err != nil {
		if socket != nil {
			socket.Close()
		}
		return nil, err
	}
	return socket, nil
}
