package redirect

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

// loopback is the number of every namespace's lo.
const loopback = 1

// An attachment is hold's program where it runs.
type attachment interface {
	// Detach ends it.
	Detach() error
	// Close lets go of it; what is pinned or a filter goes on.
	Close() error
}

// attachHold runs program for what leaves by the lo of the pod's namespace: by a link of tcx, or before Linux 6.6 a filter of
// clsact.
func (c *Capture) attachHold(program *ebpf.Program) (attachment, error) {
	r := c.redirect
	if !r.withoutTCX {
		l, err := r.pins.attachHold(c.pod.UID, c.pod.NetNS, program)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return nil, err
		}
	}
	f, err := attachFilter(c.pod.NetNS, program)
	if err != nil {
		return nil, &Problem{
			Code:   HoldMissing,
			Detail: fmt.Sprintf("The kernel has neither tcx nor clsact in pod %s: what its applications connect to is accepted before it is reached.", c.pod.UID),
			Fix:    "Run this node on Linux 6.6 or newer, or with the kernel modules sch_ingress and cls_bpf.",
			Err:    err,
		}
	}
	return f, nil
}

// attachHold is by a link of tcx, adopting the one that an earlier process pinned.
func (p pins) attachHold(uid string, netns *podns.NetNS, program *ebpf.Program) (link.Link, error) {
	path := filepath.Join(p.pod(uid), fmt.Sprintf("%s%x", holdPin, netns.Cookie()))
	l, err := adopt(path, program, func(about *link.Info) bool { return about.TCX() != nil })
	if l != nil || err != nil {
		return l, err
	}
	err = netns.Do(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: loopback, Program: program, Attach: ebpf.AttachTCXEgress})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach hold to lo of pod %s: %w", uid, err)
	}
	if err := replacePin(l, path); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// A filter is attached to lo by clsact. It cannot be pinned and stays until it is detached or the namespace ends: without a
// listener it passes everything.
type filter struct {
	netns *podns.NetNS
	attrs netlink.FilterAttrs
}

func attachFilter(netns *podns.NetNS, program *ebpf.Program) (*filter, error) {
	f := &filter{netns, netlink.FilterAttrs{
		LinkIndex: loopback, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
	}}
	err := f.do(func(handle *netlink.Handle) error {
		clsact := &netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: loopback, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
			QdiscType:  "clsact",
		}
		if err := handle.QdiscAdd(clsact); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add clsact: %w", err)
		}
		return handle.FilterReplace(&netlink.BpfFilter{FilterAttrs: f.attrs, Fd: program.FD(), Name: "ambit_hold", DirectAction: true})
	})
	if err != nil {
		return nil, fmt.Errorf("attach hold to lo as a filter: %w", err)
	}
	return f, nil
}

// Detach leaves clsact itself, which does nothing.
func (f *filter) Detach() error {
	err := f.do(func(handle *netlink.Handle) error { return handle.FilterDel(&netlink.BpfFilter{FilterAttrs: f.attrs}) })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("detach hold from lo: %w", err)
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
