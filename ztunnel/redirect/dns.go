package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
)

// dnsPort is where DNS servers are asked (RFC 1035 section 4.2).
const dnsPort = 53

// Datagrams are what a pod asks other hosts' DNS servers by UDP. Its methods may be called concurrently.
type Datagrams struct {
	conn    *net.UDPConn
	sockets map[bool]*os.File // raw, by whether they are of IPv4
	clients []netip.Addr
}

// dnsPrograms are those that bring questions, by the number of their device.
type dnsPrograms struct {
	mu sync.Mutex
	// Guarded by mu.
	attached map[int]attachment
	missing  error // why a device has none
	running  bool  // between beginDNS and endDNS
}

// beginDNS is attachDNS for the first time. A pod whose kernel lacks what it takes has its names resolved all the same, past
// ztunnel.
func (c *Capture) beginDNS() error {
	c.dns.mu.Lock()
	c.dns.running = c.pod.DNS
	c.dns.mu.Unlock()
	err := c.attachDNS()
	if errors.Is(err, errNoEgress) {
		c.redirect.logger.Error("what the pod asks DNS servers is not captured", "pod_uid", c.pod.UID, "error", err)
		err = nil
	}
	if err == nil {
		err = c.letDNS()
	}
	return err
}

// turnsDNS tells whether what the pod asks DNS servers is turned round at all of its devices.
func (c *Capture) turnsDNS() bool {
	c.dns.mu.Lock()
	defer c.dns.mu.Unlock()
	return c.dns.running && c.dns.missing == nil
}

func (c *Capture) dnsProblem() error {
	c.dns.mu.Lock()
	defer c.dns.mu.Unlock()
	return c.dns.missing
}

// attachDNS has what the pod asks DNS servers come to the listeners, from when it is enrolled: at each device where that is not
// so yet.
func (c *Capture) attachDNS() error {
	c.dns.mu.Lock()
	defer c.dns.mu.Unlock()
	if !c.dns.running {
		return nil
	}
	c.dns.missing = c.attachDNSLocked()
	return c.dns.missing
}

func (c *Capture) attachDNSLocked() error {
	devices, err := devicesOf(c.pod.NetNS)
	if err != nil {
		return err
	}
	there := map[int]bool{}
	for _, device := range devices {
		index := device.Attrs().Index
		there[index] = true
		attached, err := isAttached(c.dns.attached[index])
		if err != nil {
			return err
		}
		if attached {
			continue
		}
		l, err := c.attachDNSTo(device.Attrs())
		if err != nil {
			return err
		}
		if c.dns.attached == nil {
			c.dns.attached = map[int]attachment{}
		}
		c.dns.attached[index] = l
	}
	for index, l := range c.dns.attached {
		if !there[index] { // with its device
			l.Close()
			delete(c.dns.attached, index)
		}
	}
	return nil
}

// listenDatagrams makes the sockets by which questions come and answers go.
func (c *Capture) listenDatagrams() (err error) {
	d := &Datagrams{clients: valid(c.ip4, c.ip6)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if d.sockets, err = c.rawSockets(0); err != nil {
		return err
	}
	file, err := c.redirect.listenFile(c.pod.NetNS, unix.SOCK_DGRAM, preferredPorts[bpf.DNS])
	if err != nil {
		return err
	}
	defer file.Close() // FilePacketConn has its own
	conn, err := net.FilePacketConn(file)
	if err != nil {
		return fmt.Errorf("listen for datagrams: %w", err)
	}
	d.conn = conn.(*net.UDPConn)
	c.ports[bpf.DNS] = uint16(d.conn.LocalAddr().(*net.UDPAddr).Port)
	err = control(d.conn, func(fd int) error {
		if c.ip6.IsValid() {
			if err := setsockopt(fd, unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1); err != nil {
				return err
			}
		}
		if err := setsockopt(fd, unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1); err != nil {
			return err
		}
		if err := setsockopt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, datagramBuffer); err != nil {
			return err
		}
		return c.redirect.node.SetListener(c.slot, bpf.DNS, fd)
	})
	if err != nil {
		return fmt.Errorf("listen for datagrams: %w", err)
	}
	c.DNS = d
	return nil
}

func (c *Capture) attachDNSTo(device *netlink.LinkAttrs) (attachment, error) {
	// Devices without Ethernet's addresses, such as tunnels, hand packets down as they are.
	program, err := c.redirect.node.LoadDNS(c.steering(), c.pod.NetNS.Cookie(), device.EncapType == "ether")
	if err != nil {
		return nil, err
	}
	defer program.Close() // its link holds it
	l, err := c.attachEgress(dnsPin, device.Index, program)
	if err != nil {
		return nil, fmt.Errorf("attach dns to %s of pod %s: %w", device.Name, c.pod.UID, err)
	}
	return l, nil
}

// closeDNS lets go of the programs, which go on.
func (c *Capture) closeDNS() error { return c.endDNS(attachment.Close) }

// stopDNS ends the programs, whoever attached them: those of an earlier process are known by their pins. A filter of an earlier
// process does nothing any more.
func (c *Capture) stopDNS() error {
	errs := []error{c.endDNS(func(l attachment) error { return errors.Join(l.Detach(), l.Close()) })}
	dir := c.redirect.pins.pod(c.pod.UID)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("list pinned links: %w", err))
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), dnsPin) {
			errs = append(errs, detachPin(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

func (c *Capture) endDNS(end func(attachment) error) error {
	c.dns.mu.Lock()
	defer c.dns.mu.Unlock()
	var errs []error
	for _, l := range c.dns.attached {
		errs = append(errs, end(l))
	}
	clear(c.dns.attached)
	c.dns.running, c.dns.missing = false, nil
	return errors.Join(errs...)
}

// detachPin ends a pinned link, and removes the pin.
func detachPin(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return fmt.Errorf("load pinned link: %w", err)
	}
	defer l.Close()
	if err := l.Detach(); err != nil {
		return fmt.Errorf("detach pinned link %s: %w", filepath.Base(path), err)
	}
	return os.Remove(path)
}

// Read waits for a question. It says who asks, and whom.
func (d *Datagrams) Read(b []byte) (n int, client, server netip.AddrPort, err error) {
	var control [256]byte
	for {
		n, size, _, from, err := d.conn.ReadMsgUDPAddrPort(b, control[:])
		if err != nil {
			return 0, client, server, err
		}
		client = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		server, ok := originalDestination(control[:size])
		// Nothing else is steered here; answers are sent in the name of whom was asked, so it is looked at again.
		if ok && server.Port() == dnsPort && slices.Contains(d.clients, client.Addr()) {
			return n, client, server, nil
		}
	}
}

// originalDestination reads the control message of IP_RECVORIGDSTADDR or IPV6_RECVORIGDSTADDR.
func originalDestination(control []byte) (netip.AddrPort, bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for i := range messages {
		m := &messages[i]
		is4 := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR
		if !is4 && (m.Header.Level != unix.SOL_IPV6 || m.Header.Type != unix.IPV6_ORIGDSTADDR) {
			continue
		}
		address, err := unix.ParseOrigDstAddr(m)
		if err != nil {
			return netip.AddrPort{}, false
		}
		switch a := address.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), true
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)), true
		}
	}
	return netip.AddrPort{}, false
}

// Write answers the client in the name of the server that it asked.
func (d *Datagrams) Write(b []byte, client, server netip.AddrPort) error {
	socket := d.sockets[client.Addr().Is4()]
	if socket == nil || client.Addr().BitLen() != server.Addr().BitLen() || len(b) > maxDatagram {
		return fmt.Errorf("answer %s for %s: %d bytes cannot be sent", client, server, len(b))
	}
	if err := sendBy(socket, datagram(server, client, b)); err != nil {
		return fmt.Errorf("answer %s for %s: %w", client, server, err)
	}
	return nil
}

// datagramBuffer is what may wait to be read, as the kernel counts it: thousands of questions, where the usual buffer holds two
// hundred. One that is lost is asked again after five seconds.
const datagramBuffer = 1 << 20

// maxDatagram is what a datagram may hold: an IPv4 packet has 65535 bytes (RFC 791 section 3.1).
const maxDatagram = 65535 - ip4Size - udpSize

// datagram is an UDP datagram with its IP header.
func datagram(source, destination netip.AddrPort, payload []byte) []byte {
	from, to := source.Addr().AsSlice(), destination.Addr().AsSlice()
	p := ipPacket(source.Addr().Is4(), unix.IPPROTO_UDP, udpSize+len(payload), from, to)
	udp := p[len(p)-udpSize-len(payload):]
	binary.BigEndian.PutUint16(udp[0:], source.Port())
	binary.BigEndian.PutUint16(udp[2:], destination.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[udpSize:], payload)
	checksum := fold(sum(pseudo(unix.IPPROTO_UDP, len(udp), from, to), udp))
	if checksum == 0 { // which would mean none (RFC 768)
		checksum = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], checksum)
	return p
}

// Close ends both ways; Read returns an error that is net.ErrClosed.
func (d *Datagrams) Close() error {
	var errs []error
	if d.conn != nil {
		if err := d.conn.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	for _, s := range d.sockets {
		if err := s.Close(); !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
