package netnstest

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SetMTU sets the MTU of both ends of the pod's interface.
func (p *Pod) SetMTU(bytes int) {
	p.t.Helper()
	for in, device := range map[*NetNS]string{p.NetNS: "eth0", p.Node.NetNS: p.port} {
		in.must(func() error {
			l, err := netlink.LinkByName(device)
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(l, bytes)
		})
	}
}

// Unplug takes the pod off the network for good, without a word to anybody: its processes and sockets live on.
func (p *Pod) Unplug() {
	p.t.Helper()
	p.Node.must(func() error {
		l, err := netlink.LinkByName(p.port)
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(l)
	})
}

// Losses are packets lost on the wire between the nodes.
type Losses struct {
	lost *ebpf.Map
	stop func()
}

// Lose makes the wire lose this share of the packets that each node sends to others, until the test ends or Stop. What a sender
// hands down as one piece, to be cut by the device, is lost as one.
func (n *Network) Lose(share float64) *Losses {
	n.t.Helper()
	lost, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		n.t.Fatalf("make map of losses: %v", err)
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "lose", Type: ebpf.SchedCLS, License: "GPL", Instructions: lose(share, lost)})
	if err != nil {
		n.t.Fatalf("load lossy program: %v", err)
	}
	var links []link.Link
	for _, node := range n.nodes {
		node.must(func() error {
			wire, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			l, err := link.AttachTCX(link.TCXOptions{Interface: wire.Attrs().Index, Program: program, Attach: ebpf.AttachTCXEgress})
			if err != nil {
				return fmt.Errorf("attach lossy program: %w", err)
			}
			links = append(links, l)
			return nil
		})
	}
	stop := sync.OnceFunc(func() {
		for _, l := range links {
			l.Close()
		}
		program.Close()
	})
	n.t.Cleanup(func() { stop(); lost.Close() })
	return &Losses{lost: lost, stop: stop}
}

// lose counts and drops a packet if a random number is below the share.
func lose(share float64, lost *ebpf.Map) asm.Instructions {
	const pass, drop = 0, 2 // TCX_PASS, TCX_DROP of linux/bpf.h
	return asm.Instructions{
		asm.FnGetPrandomU32.Call(),
		asm.LoadImm(asm.R1, int64(share*math.MaxUint32), asm.DWord),
		asm.JGE.Reg(asm.R0, asm.R1, "pass"),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, lost.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R0, drop).WithSymbol("drop"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, pass).WithSymbol("pass"),
		asm.Return(),
	}
}

// Stop ends the losses.
func (l *Losses) Stop() { l.stop() }

// Packets is how many were lost.
func (l *Losses) Packets() (n uint64, err error) {
	err = l.lost.Lookup(uint32(0), &n)
	return n, err
}

// A Socket is a TCP socket that is in a namespace, whoever has it.
type Socket struct {
	Sight
	State uint8 // TCP_ESTABLISHED and so on, of net/tcp_states.h
	Owned bool  // a process has it open
}

// Sockets lists the TCP sockets of the namespace.
func (n *NetNS) Sockets() []Socket {
	n.t.Helper()
	var all []Socket
	n.must(func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			found, err := netlink.SocketDiagTCP(family)
			if err != nil {
				return fmt.Errorf("list sockets: %w", err)
			}
			for _, s := range found {
				all = append(all, Socket{
					Sight: Sight{Local: endpoint(s.ID.Source, s.ID.SourcePort), Remote: endpoint(s.ID.Destination, s.ID.DestinationPort)},
					State: s.State, Owned: s.INode != 0,
				})
			}
		}
		return nil
	})
	return all
}

func endpoint(ip net.IP, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port)
}
