package redirect

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

// loopback is the number of every namespace's lo.
const loopback = 1

// An attachment is a program where it runs: hold's on lo, that of DNS on another interface.
type attachment interface {
	// Detach ends it.
	Detach() error
	// Close lets go of it; what is pinned or a filter goes on.
	Close() error
}

// attachHold runs program for what leaves by the lo of the pod's namespace.
func (c *Capture) attachHold(program *ebpf.Program) (attachment, error) {
	l, err := c.attachEgress(holdPin, loopback, program)
	if err != nil && !errors.Is(err, errNoEgress) {
		return nil, fmt.Errorf("attach hold to lo of pod %s: %w", c.pod.UID, err)
	}
	if err != nil {
		return nil, &Problem{
			Code:   HoldMissing,
			Detail: fmt.Sprintf("The kernel has neither tcx nor clsact in pod %s: what its applications connect to is accepted before it is reached.", c.pod.UID),
			Fix:    "Run this node on Linux 6.6 or newer, or with the kernel modules sch_ingress and cls_bpf.",
			Err:    err,
		}
	}
	return l, nil
}

// isAttached tells whether a program runs still: a link is taken off by nobody else, a filter by whoever has CAP_NET_ADMIN in the
// pod.
func isAttached(a attachment) (bool, error) {
	switch a := a.(type) {
	case nil:
		return false, nil
	case *filter:
		return a.there()
	}
	return true, nil
}

// errNoEgress: the kernel runs no programs for what leaves by an interface.
var errNoEgress = errors.New("neither tcx nor clsact")

// attachEgress runs program for what leaves by an interface of the pod's namespace: by a link of tcx, or before Linux 6.6 a
// filter of clsact. The pin says which of the pod's programs it is.
func (c *Capture) attachEgress(pin string, device int, program *ebpf.Program) (attachment, error) {
	r := c.redirect
	if !r.withoutTCX {
		l, err := r.pins.attachTCX(c.pod.UID, pin, c.pod.NetNS, device, program)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return nil, err
		}
	}
	f, err := attachFilter(c.pod.NetNS, pin, device, program)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoEgress, err)
	}
	return f, nil
}

// attachTCX is by a link of tcx, adopting the one that an earlier process pinned.
func (p pins) attachTCX(uid, pin string, netns *podns.NetNS, device int, program *ebpf.Program) (link.Link, error) {
	path := filepath.Join(p.pod(uid), fmt.Sprintf("%s%x", pin, netns.Cookie()))
	if device != loopback {
		path += fmt.Sprintf("-%d", device)
	}
	l, err := adopt(path, program, func(about *link.Info) bool {
		tcx := about.TCX()
		return tcx != nil && int(tcx.Ifindex) == device
	})
	if l != nil || err != nil {
		return l, err
	}
	err = netns.Do(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: device, Program: program, Attach: ebpf.AttachTCXEgress})
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := replacePin(l, path); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// A filter is attached by clsact. It cannot be pinned and stays until it is detached or the interface ends: without a
// listener, or without an enrolment, it does nothing.
type filter struct {
	netns *podns.NetNS
	attrs netlink.FilterAttrs
}

func attachFilter(netns *podns.NetNS, pin string, device int, program *ebpf.Program) (*filter, error) {
	f := &filter{netns, netlink.FilterAttrs{
		LinkIndex: device, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Priority: filterPriority[pin], Protocol: unix.ETH_P_ALL,
	}}
	err := f.do(func(handle *netlink.Handle) error {
		clsact := &netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: device, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
			QdiscType:  "clsact",
		}
		if err := handle.QdiscAdd(clsact); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add clsact: %w", err)
		}
		return handle.FilterReplace(&netlink.BpfFilter{FilterAttrs: f.attrs, Fd: program.FD(), Name: "ambit_" + strings.TrimRight(pin, "-"), DirectAction: true})
	})
	if err != nil {
		return nil, fmt.Errorf("attach a filter: %w", err)
	}
	return f, nil
}

// filterPriority orders the filters of an interface: the guard is first, at 1.
var filterPriority = map[string]uint16{holdPin: 1, dnsPin: 2}

// there tells whether nobody has taken it off.
func (f *filter) there() (found bool, err error) {
	err = f.do(func(handle *netlink.Handle) error {
		device, err := handle.LinkByIndex(f.attrs.LinkIndex)
		if err != nil {
			return err
		}
		filters, err := handle.FilterList(device, f.attrs.Parent)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return err
		}
		found = slices.ContainsFunc(filters, func(other netlink.Filter) bool {
			return other.Attrs().Handle == f.attrs.Handle && other.Attrs().Priority == f.attrs.Priority
		})
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("list filters: %w", err)
	}
	return found, nil
}

// Detach leaves clsact itself, which does nothing.
func (f *filter) Detach() error {
	err := f.do(func(handle *netlink.Handle) error { return handle.FilterDel(&netlink.BpfFilter{FilterAttrs: f.attrs}) })
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("detach filter: %w", err)
	}
	return nil
}

func (f *filter) Close() error { return nil }

func (f *filter) do(what func(*netlink.Handle) error) error {
	return f.netns.Do(func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer handle.Close()
		return what(handle)
	})
}
