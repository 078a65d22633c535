// Package bpf holds the programs that redirect pods' connections, and is the only door to them from Go.
//
// One C file decides one thing:
//
//	connect.c  which connect(2) is ztunnel's to carry        a cgroup, once a node
//	permit.c   which connections may pass a pod's listeners  a cgroup, once a node
//	steer.c    which listener takes a new connection         a network namespace, once a pod
//	hold.c     which SYN waits until its upstream stands     a namespace's lo, once a pod
//	dns.c      which datagram asks a DNS server              a pod's interface
//	guard.c    what may leave a pod                          each link of a pod, at both ends
//
// They meet in the maps of maps.h. [Load] creates these, or takes those that an earlier process pinned, and loads what a
// node needs once; [Node.LoadSteer] loads a pod's program. Every run of a program ends in a verdict, which
// [Node.Verdicts] counts under the name that the C gives it.
//
// Attaching and pinning links, sockets, routes and the order of it all are redirect's job. The objects are generated with
// the clang and the headers of Debian 12 (clang-14, llvm-14, libbpf-dev, linux-libc-dev) and need no kernel headers to run.
package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
)

//go:generate -command bpf2go go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -cflags "-Wall -Wextra -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu"
//go:generate bpf2go -type number -type listener -type own -type class -type node -type node_flag -type verdict -type addr -type enrolment -type flow connect connect.c
//go:generate bpf2go -no-global-types -type guard -type guard_flag -type tunnelled -type tunnelled_key -type egress_flag -type range_key -type name_key -type name -type allowance -type tried_key -type tried guard guard.c
//go:generate bpf2go -no-global-types -type held hold hold.c
//go:generate bpf2go -no-global-types permit permit.c
//go:generate bpf2go -no-global-types steer steer.c
//go:generate bpf2go -no-global-types dns dns.c
//go:generate sh -c "sha256sum connect.c dns.c egress.h guard.c hold.c maps.h mesh.h permit.c steer.c > sources.sha256"

// Numbers that the programs and their users share.
const (
	// Mark is on every captured socket, and on the sockets by which ztunnel delivers under a client's address.
	Mark = int(connectNumberMARK)
	// PortHBONE is the port at which other ztunnels reach a pod.
	PortHBONE = uint16(connectNumberPORT_HBONE)
	// MaxPods is how many pods of one node can be captured at a time.
	MaxPods = int(connectNumberMAX_PODS)
	// MaxPodCgroups is how many cgroups of pods a node can have.
	MaxPodCgroups = int(connectNumberMAX_POD_CGROUPS)
	// MaxUID is the longest pod UID in bytes.
	MaxUID = int(connectNumberUID_SIZE) - 1
)

// A Listener is what a listening socket of a pod is for.
type Listener uint32

const (
	Outbound  = Listener(connectListenerLISTENER_OUTBOUND)
	Plaintext = Listener(connectListenerLISTENER_PLAINTEXT)
	HBONE     = Listener(connectListenerLISTENER_HBONE)
	// DNS takes datagrams, DNSStream the connections to DNS servers.
	DNS       = Listener(connectListenerLISTENER_DNS)
	DNSStream = Listener(connectListenerLISTENER_DNS_STREAM)

	listenerCount = connectListenerLISTENER_DNS_STREAM + 1
)

// An Own says what ztunnel made a socket for.
type Own uint32

const (
	// Tunnel sockets are never captured, and stopped by the listeners of captured pods like anyone's.
	Tunnel = Own(connectOwnOWN_TUNNEL)
	// Delivery sockets pass the listeners of the captured pod that they connect to.
	Delivery = Own(connectOwnOWN_DELIVERY)
)

// An Enrolment is a captured pod. At most one address of each family; the zero Addr for none.
type Enrolment struct {
	UID        string
	IPv4, IPv6 netip.Addr
}

// Steering is what a pod's steer program is loaded with.
type Steering struct {
	IPv4, IPv6 netip.Addr
	// Slot is the pod's place among the listeners: below MaxPods, one pod at a time.
	Slot uint32
	// Ports are what the pod's listeners are bound to. Nobody gets to them by asking for these ports.
	Ports Ports
	// DNS says that what the pod asks DNS servers comes to the listeners for it.
	DNS bool
}

// Ports are ports of listeners, by Listener; zero: there is none.
type Ports [listenerCount]uint16

func (s Steering) check() error {
	if s.Slot >= uint32(MaxPods) {
		return fmt.Errorf("slot %d of %d", s.Slot, MaxPods)
	}
	return nil
}

// A Node is what all captured pods of a node share. Its methods may be called concurrently.
type Node struct {
	Connect4, Connect6, Permit *ebpf.Program

	maps     map[string]*ebpf.Map
	steer    *ebpf.CollectionSpec
	hold     *ebpf.CollectionSpec
	dns      *ebpf.CollectionSpec
	guard    *ebpf.CollectionSpec
	id       ebpf.MapID // of mesh_verdicts, which every program uses
	verdicts []string   // by number

	changing sync.Mutex // what holds for the node
}

// A Host is the network namespace of the node.
type Host struct {
	Cookie uint64
	// Layout is the version of what is pinned.
	Layout uint32
	// PodCgroups are the ids of the cgroups below which all pods are, MaxPodCgroups at most: what is there does not pass.
	PodCgroups []uint64
}

// Load loads the node's programs. The maps that outlive the process are taken from, or pinned to, the folder pins of a
// BPF file system.
func Load(pins string, host Host) (_ *Node, err error) {
	connect, err := loadConnect()
	if err != nil {
		return nil, err
	}
	permit, err := loadPermit()
	if err != nil {
		return nil, err
	}
	steer, err := loadSteer()
	if err != nil {
		return nil, err
	}
	hold, err := loadHold()
	if err != nil {
		return nil, err
	}
	dns, err := loadDns()
	if err != nil {
		return nil, err
	}
	guard, err := loadGuard()
	if err != nil {
		return nil, err
	}
	verdicts, err := verdictNames(connect.Types)
	if err != nil {
		return nil, err
	}
	maps, err := loadMaps(guard, pins)
	if err != nil {
		return nil, fmt.Errorf("load maps: %w", err)
	}
	n := &Node{maps: maps, steer: steer, hold: hold, guard: guard, dns: dns, verdicts: verdicts}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	if n.id, err = idOf(maps[guardMapMeshVerdicts]); err != nil {
		return nil, err
	}
	if err := errors.Join(setHost(host, connect), n.claim(host)); err != nil {
		return nil, err
	}
	var programs struct {
		connectPrograms
		permitPrograms
	}
	options := &ebpf.CollectionOptions{MapReplacements: maps}
	if err := connect.LoadAndAssign(&programs.connectPrograms, options); err != nil {
		return nil, fmt.Errorf("load connect: %w", err)
	}
	n.Connect4, n.Connect6 = programs.ConnectConnect4, programs.ConnectConnect6
	if err := permit.LoadAndAssign(&programs.permitPrograms, options); err != nil {
		return nil, fmt.Errorf("load permit: %w", err)
	}
	n.Permit = programs.PermitSockops
	return n, n.bind(n.Connect4)
}

func setHost(host Host, connect *ebpf.CollectionSpec) error {
	if len(host.PodCgroups) > MaxPodCgroups {
		return fmt.Errorf("%d cgroups of pods, %d at most", len(host.PodCgroups), MaxPodCgroups)
	}
	var cgroups [connectNumberMAX_POD_CGROUPS]uint64
	copy(cgroups[:], host.PodCgroups)
	for _, v := range []struct {
		spec  *ebpf.CollectionSpec
		name  string
		value any
	}{
		{connect, connectVarHostCookie, host.Cookie},
		{connect, connectVarPodCgroups, cgroups},
	} {
		if err := v.spec.Variables[v.name].Set(v.value); err != nil {
			return fmt.Errorf("set %s: %w", v.name, err)
		}
	}
	return nil
}

// loadMaps creates every mesh_ map, or takes it from its pin.
func loadMaps(spec *ebpf.CollectionSpec, pins string) (map[string]*ebpf.Map, error) {
	maps := &ebpf.CollectionSpec{Maps: map[string]*ebpf.MapSpec{}, ByteOrder: spec.ByteOrder}
	for _, name := range append([]string{guardMapMeshAsking, guardMapMeshHeld, guardMapMeshListeners}, pinnedMaps...) {
		m := spec.Maps[name].Copy()
		if slices.Contains(pinnedMaps, name) {
			m.Pinning = ebpf.PinByName
		}
		maps.Maps[name] = m
	}
	c, err := ebpf.NewCollectionWithOptions(maps, ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: pins}})
	if err != nil {
		return nil, err
	}
	return c.Maps, nil
}

func idOf(m *ebpf.Map) (ebpf.MapID, error) {
	about, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("read map: %w", err)
	}
	id, ok := about.ID()
	if !ok {
		return 0, errors.New("read map: the kernel tells no id")
	}
	return id, nil
}

// Close lets go of the programs and maps. What is attached or pinned stays.
func (n *Node) Close() {
	for _, p := range []*ebpf.Program{n.Connect4, n.Connect6, n.Permit} {
		if p != nil {
			p.Close()
		}
	}
	for _, m := range n.maps {
		m.Close()
	}
}

// LoadSteer loads a pod's steer program. The caller closes it.
func (n *Node) LoadSteer(s Steering) (*ebpf.Program, error) {
	var ports [connectNumberSLOT_SIZE]uint16
	copy(ports[:], s.Ports[:])
	var programs steerPrograms
	if err := s.check(); err != nil {
		return nil, err
	}
	err := n.loadPod(n.steer, &programs, map[string]any{
		steerVarSelf4:       addrOf(s.IPv4),
		steerVarSelf6:       addrOf(s.IPv6),
		steerVarSlot:        s.Slot,
		steerVarOwnPorts:    ports,
		steerVarCapturesDns: s.DNS,
	})
	if err != nil {
		return nil, fmt.Errorf("load steer: %w", err)
	}
	return programs.SteerSkLookup, nil
}

// LoadHold loads a pod's hold program. The caller closes it. Ports are not looked at.
func (n *Node) LoadHold(s Steering) (*ebpf.Program, error) {
	var programs holdPrograms
	if err := s.check(); err != nil {
		return nil, err
	}
	err := n.loadPod(n.hold, &programs, map[string]any{
		holdVarSelf4:       addrOf(s.IPv4),
		holdVarSelf6:       addrOf(s.IPv6),
		holdVarSlot:        s.Slot,
		holdVarCapturesDns: s.DNS,
	})
	if err != nil {
		return nil, fmt.Errorf("load hold: %w", err)
	}
	return programs.HoldEgress, nil
}

// LoadDNS loads the program for an interface of the pod whose namespace has this cookie. mac: its packets begin with an
// Ethernet header. The caller closes it. Ports are not looked at.
func (n *Node) LoadDNS(s Steering, cookie uint64, mac bool) (*ebpf.Program, error) {
	var programs dnsPrograms
	if err := s.check(); err != nil {
		return nil, err
	}
	err := n.loadPod(n.dns, &programs, map[string]any{
		dnsVarSelf4:  addrOf(s.IPv4),
		dnsVarSelf6:  addrOf(s.IPv6),
		dnsVarSlot:   s.Slot,
		dnsVarCookie: cookie,
		dnsVarHasMac: mac,
	})
	if err != nil {
		return nil, fmt.Errorf("load dns: %w", err)
	}
	return programs.DnsEgress, nil
}

// loadPod loads a program of one pod with its constants.
func (n *Node) loadPod(spec *ebpf.CollectionSpec, programs any, constants map[string]any) error {
	spec = spec.Copy()
	for name, value := range constants {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return spec.LoadAndAssign(programs, &ebpf.CollectionOptions{MapReplacements: n.maps})
}

// SetListener makes the listening socket fd a listener of the pod in slot.
func (n *Node) SetListener(slot uint32, kind Listener, fd int) error {
	key := slot*uint32(connectNumberSLOT_SIZE) + uint32(kind)
	return n.maps[connectMapMeshListeners].Put(key, uint64(fd))
}

// Tag makes the socket fd one of ztunnel's own.
func (n *Node) Tag(fd int, own Own) error {
	return n.maps[connectMapMeshOwn].Put(uint32(fd), uint32(own))
}

// Enrol begins to capture what the namespace of this cookie connects to.
func (n *Node) Enrol(cookie uint64, e Enrolment) error {
	if len(e.UID) > MaxUID {
		return fmt.Errorf("pod UID of %d bytes, %d at most", len(e.UID), MaxUID)
	}
	value := connectEnrolment{Self4: addrOf(e.IPv4), Self6: addrOf(e.IPv6)}
	copy(value.Uid[:], e.UID)
	return n.maps[connectMapMeshEnrolled].Put(cookie, value)
}

// Withdraw ends what Enrol began. To withdraw what is not enrolled is no error.
func (n *Node) Withdraw(cookie uint64) error {
	return ignoreMissing(n.maps[connectMapMeshEnrolled].Delete(cookie))
}

// Enrolled returns the captured pods by the cookies of their namespaces.
func (n *Node) Enrolled() (map[uint64]Enrolment, error) {
	enrolled := map[uint64]Enrolment{}
	var cookie uint64
	var value connectEnrolment
	entries := n.maps[connectMapMeshEnrolled].Iterate()
	for entries.Next(&cookie, &value) {
		uid := value.Uid[:]
		for i, b := range uid {
			if b == 0 {
				uid = uid[:i]
				break
			}
		}
		enrolled[cookie] = Enrolment{UID: string(uid), IPv4: value.Self4.netip(), IPv6: value.Self6.netip()}
	}
	return enrolled, entries.Err()
}

// AddPod makes ip an address of the captured pod whose namespace has this cookie: only what permit lets reaches it past
// its listeners.
func (n *Node) AddPod(ip netip.Addr, cookie uint64) error {
	return n.maps[connectMapMeshPods].Put(addrOf(ip), cookie)
}

// RemovePod ends what AddPod began, unless the address has passed to another namespace since.
func (n *Node) RemovePod(ip netip.Addr, cookie uint64) error {
	var owner uint64
	pods := n.maps[connectMapMeshPods]
	if err := pods.Lookup(addrOf(ip), &owner); err != nil {
		return ignoreMissing(err)
	}
	if owner != cookie {
		return nil
	}
	return ignoreMissing(pods.Delete(addrOf(ip)))
}

// Pods returns the addresses of captured pods, with the cookies of their namespaces.
func (n *Node) Pods() (map[netip.Addr]uint64, error) {
	pods := map[netip.Addr]uint64{}
	var ip connectAddr
	var cookie uint64
	entries := n.maps[connectMapMeshPods].Iterate()
	for entries.Next(&ip, &cookie) {
		pods[ip.netip()] = cookie
	}
	return pods, entries.Err()
}

func ignoreMissing(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// addrOf lays an address out as the programs read it: 16 bytes in network byte order, all zero for none.
func addrOf(ip netip.Addr) (a connectAddr) {
	if ip.IsValid() {
		*(*[16]byte)(unsafe.Pointer(&a.Word)) = ip.As16()
	}
	return a
}

func (a connectAddr) netip() netip.Addr {
	ip := netip.AddrFrom16(*(*[16]byte)(unsafe.Pointer(&a.Word)))
	if ip == netip.IPv6Unspecified() {
		return netip.Addr{}
	}
	return ip.Unmap()
}
