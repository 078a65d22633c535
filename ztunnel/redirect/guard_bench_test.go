package redirect

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/netnstest"
)

// BenchmarkGuard measures what one run of a guard costs, by the kernel's own clock (which is some 20 ns of each): two of them see
// each packet that leaves a pod.
func BenchmarkGuard(b *testing.B) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Fatal(err)
	}
	defer stats.Close()
	network := netnstest.New(b, "a", "b")
	a := openNode(b, network.Node("a"))
	pod, outside := a.Pod("pod"), network.Node("b").Pod("outside")
	server := outside.Start()
	server.Listen("[::]:8080")
	server.Listen("[::]:15008")
	pod.Start()
	u := a.capture(b, pod)
	cases := []struct {
		name string
		own  uint16 // the port of what ztunnel sends by TCP; zero: the pod sends datagrams
		// what is told of the pod
		denied, tried bool
		allowed       map[netip.Prefix]bpf.Allowance
		tunnelled     map[bpf.TunnelledTo]bpf.Tunnelled
	}{
		{name: "datagram/permissive"},
		{name: "datagram/denied and excepted", denied: true, allowed: map[netip.Prefix]bpf.Allowance{netip.PrefixFrom(outside.IPv4, 32): {Every: true}}},
		{name: "datagram/denied", denied: true},
		{name: "datagram/on trial", tried: true},
		{name: "ztunnel/to a tunnel's port", own: 15008, tunnelled: everywhereBut(outside.IPv4)},
		{name: "ztunnel/nothing is shut", own: appPort},
		{name: "ztunnel/others are shut", own: appPort, tunnelled: everywhereBut(outside.IPv4)},
		{name: "ztunnel/shut for strict pods", own: appPort, tunnelled: with(everywhereBut(outside.IPv4), outside.IPv4, bpf.TunnelledByStrict)},
	}
	for _, c := range cases {
		b.Run(c.name, func(b *testing.B) {
			for _, err := range []error{u.SetEgress(c.denied), u.SetTried(c.tried), u.AllowRanges(bpf.InForce, c.allowed), a.TunnelOnly(c.tunnelled)} {
				if err != nil {
					b.Fatal(err)
				}
			}
			send := datagrams(b, pod, netip.AddrPortFrom(outside.IPv4, quicPort))
			if c.own != 0 {
				send = segments(b, u, netip.AddrPortFrom(outside.IPv4, c.own))
			}
			ran, took := u.guardStats(b)
			for b.Loop() {
				send()
			}
			runs, spent := u.guardStats(b)
			if runs -= ran; runs == 0 {
				b.Fatal("no guard ran")
			}
			b.ReportMetric(float64((spent-took).Nanoseconds())/float64(runs), "ns/run")
		})
	}
}

// everywhereBut are as many addresses as there is room for, less one, and among them is not that one.
func everywhereBut(ip netip.Addr) map[bpf.TunnelledTo]bpf.Tunnelled {
	all := map[bpf.TunnelledTo]bpf.Tunnelled{}
	for i := uint32(0); len(all) < bpf.MaxTunnelled-1; i++ {
		var at [4]byte
		binary.BigEndian.PutUint32(at[:], 10<<24+i)
		if other := netip.AddrFrom4(at); other != ip {
			all[bpf.TunnelledAddr(other, 0)] = bpf.TunnelledByAll
		}
	}
	return all
}

func with(all map[bpf.TunnelledTo]bpf.Tunnelled, ip netip.Addr, by bpf.Tunnelled) map[bpf.TunnelledTo]bpf.Tunnelled {
	all[bpf.TunnelledAddr(ip, 0)] = by
	return all
}

// datagrams returns what sends one of the pod's own.
func datagrams(b *testing.B, pod *netnstest.Pod, to netip.AddrPort) func() {
	b.Helper()
	var conn net.Conn
	err := pod.Do(func() (err error) {
		conn, err = net.Dial("udp", to.String())
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return func() { _, _ = conn.Write([]byte("quic")) } // it may be told that it was dropped, or that nobody listens
}

// segments returns what sends one of ztunnel's own.
func segments(b *testing.B, u *tunnel, to netip.AddrPort) func() {
	b.Helper()
	conn, err := u.Dial(b.Context(), to)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	go func() {
		for some := make([]byte, 1<<16); ; {
			if _, err := conn.Read(some); err != nil {
				return
			}
		}
	}()
	return func() {
		if _, err := conn.Write([]byte("x")); err != nil {
			b.Fatal(err)
		}
	}
}

// guardStats are the runs of all guards of the pod, and what they took.
func (c *Capture) guardStats(b *testing.B) (runs uint64, took time.Duration) {
	b.Helper()
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	for _, program := range c.guard.sites {
		stats, err := program.Stats()
		if err != nil {
			b.Fatal(err)
		}
		runs += stats.RunCount
		took += stats.Runtime
	}
	return runs, took
}
