package fault

import (
	"context"
	"fmt"
	"syscall"
)

// attacks are of applications with NET_ADMIN and NET_RAW.
func attacks() []Fault {
	return []Fault{
		{
			Name: "pod-rule-deleted", Quick: true, Attack: []string{"rule-deleted"},
			What: "An application with NET_ADMIN deletes the routing rules by which marked packets come to ztunnel.",
			How:  "All rules but the kernel's own, IPv4 and IPv6, ten times a second, and connects.",
		},
		{
			Name: "pod-mark-reset", Quick: true, Attack: []string{"mark-reset"},
			What: "An application takes the mark off its socket.",
			How:  "SO_MARK 0: after connect(2) and before the SYN is repeated, and on a connection that stands, before it sends.",
		},
		{
			Name: "ip-options", Quick: true, Attack: []string{"ip-options"},
			What: "An application hides TCP behind IP options.",
			How:  "Forged segments behind IPv4 options and IPv6 extension headers, by a raw socket.",
		},
		{
			Name: "fragments", Quick: true, Attack: []string{"fragments"},
			What: "An application sends TCP in pieces too small for a header.",
			How:  "Forged segments as IPv4 and IPv6 fragments of 16 bytes and the rest, by a raw socket.",
		},
		{
			Name: "raw-socket", Quick: true, Attack: []string{"raw-socket", "packet-socket"},
			What: "An application sends TCP without TCP.",
			How:  "Forged segments by raw sockets, and by packet sockets through the queueing discipline and past it (PACKET_QDISC_BYPASS).",
		},
	}
}

// late is configuration that does not come.
func late() []Fault {
	return []Fault{{
		Name: "policy-late", Quick: true, NewPods: true,
		What: "ztunnel starts and knows no policy yet.",
		How: "The controller's process is stopped (SIGSTOP), so that connections to it stand and nothing comes; ztunnel's folder on the node is emptied of its snapshot, " +
			"and ztunnel killed; new pods are created meanwhile. The cause goes with SIGCONT.",
		Inject: func(ctx context.Context, l *Lab) error {
			if err := l.signalController(syscall.SIGSTOP); err != nil {
				return err
			}
			if err := l.shell(ctx, "rm -f "+state+"/snapshot*"); err != nil {
				return err
			}
			return killOnce(ctx, l)
		},
		Heal: func(ctx context.Context, l *Lab) error { return l.signalController(syscall.SIGCONT) },
	}}
}

func (l *Lab) signalController(signal syscall.Signal) error {
	reached := 0
	for _, node := range []string{"n1", "n2", "n3"} {
		n, err := l.Bed.Machine(node).Signal(controller, signal)
		if err != nil {
			return err
		}
		reached += n
	}
	if reached == 0 {
		return fmt.Errorf("no controller runs")
	}
	return nil
}
