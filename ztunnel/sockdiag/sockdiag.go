// Package sockdiag knows the TCP sockets of a network namespace, and can end them: sock_diag(7).
//
// Everything is about the namespace of the calling thread: call it inside podns.NetNS.Do. A [Socket] is a moment's view; that
// it is still the same one its cookie tells, which the kernel gives to no other until it restarts.
//
// Whose a socket is, and whether it is to end, is for the caller to decide.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A State of a TCP socket, as in the kernel's net/tcp_states.h.
type State uint8

const (
	Established State = 1 + iota
	SynSent
	SynReceived
	FinWait1
	FinWait2
	TimeWait
	Closed
	CloseWait
	LastAck
	Listening
	Closing
	NewSynReceived
)

// Connected are the states of connections that somebody may still use.
var Connected = []State{Established, SynSent, SynReceived, FinWait1, FinWait2, CloseWait, LastAck, Closing}

// A Socket is a TCP socket. IPv4 addresses are never mapped ones.
type Socket struct {
	Local, Remote netip.AddrPort
	State         State
	// Cookie is the socket's until the kernel restarts.
	Cookie uint64
	Mark   uint32
	// Inode is of the file that a process has of it; zero once none has.
	Inode uint32
	// Tag is what a map of BPF socket storage has for the socket, if List was asked for one; nil for nothing.
	Tag []byte
	// Cgroup is the id of the cgroup of version 2 in which the socket was made; zero where the kernel does not tell.
	Cgroup uint64

	family uint8
	id     socketID // as the kernel gave it
}

// socketID is struct inet_diag_sockid: 48 bytes that go back to the kernel as they came.
type socketID [48]byte

// Sizes and offsets of linux/inet_diag.h.
const (
	requestSize = 8 + len(socketID{}) // struct inet_diag_req_v2
	messageSize = len(socketID{}) + 24

	idDestinationPort = 2
	idSource          = 4
	idDestination     = 20
	idCookie          = 40

	attributeTrafficClass = 6  // INET_DIAG_TCLASS
	attributeMark         = 15 // INET_DIAG_MARK
	attributeStorages     = 20 // INET_DIAG_SK_BPF_STORAGES
	attributeCgroupID     = 21 // INET_DIAG_CGROUP_ID
)

// Attributes of linux/inet_diag.h and linux/sock_diag.h that ask for BPF storage, and answer.
const (
	requestStorages = 2 // INET_DIAG_REQ_SK_BPF_STORAGES
	storageMapFD    = 1 // SK_DIAG_BPF_STORAGE_REQ_MAP_FD
	storage         = 1 // SK_DIAG_BPF_STORAGE
	storageValue    = 3 // SK_DIAG_BPF_STORAGE_MAP_VALUE
)

// request is struct inet_diag_req_v2.
type request struct {
	family uint8
	states uint32 // bits
	id     socketID
}

func (r request) Len() int { return requestSize }

func (r request) Serialize() []byte {
	b := make([]byte, requestSize)
	b[0], b[1] = r.family, unix.IPPROTO_TCP
	b[2] = 1 << (attributeTrafficClass - 1) // with which the kernel tells the cgroup too
	binary.NativeEndian.PutUint32(b[4:], r.states)
	copy(b[8:], r.id[:])
	return b
}

// List returns the sockets in one of the states.
func List(states ...State) ([]Socket, error) { return list(0, states) }

// ListTagged is List, with each socket's Tag in the map of BPF socket storage that has this file descriptor.
func ListTagged(mapFD int, states ...State) ([]Socket, error) { return list(mapFD, states) }

func list(mapFD int, states []State) ([]Socket, error) {
	var bits uint32
	for _, s := range states {
		bits |= 1 << s
	}
	var all []Socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found, err := ask(unix.NLM_F_DUMP, request{family: family, states: bits}, mapFD)
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		all = append(all, found...)
	}
	return all, nil
}

func ask(flags int, r request, mapFD int) ([]Socket, error) {
	question := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, flags)
	question.AddData(r)
	if mapFD > 0 {
		storages := nl.NewRtAttr(requestStorages|unix.NLA_F_NESTED, nil)
		storages.AddRtAttr(storageMapFD, nl.Uint32Attr(uint32(mapFD)))
		question.AddData(storages)
	}
	answers, err := question.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if err != nil {
		return nil, err
	}
	sockets := make([]Socket, 0, len(answers))
	for _, a := range answers {
		s, err := parse(a)
		if err != nil {
			return nil, err
		}
		sockets = append(sockets, s)
	}
	return sockets, nil
}

// parse reads struct inet_diag_msg and the attributes after it.
func parse(message []byte) (s Socket, err error) {
	if len(message) < messageSize {
		return s, fmt.Errorf("message of %d bytes", len(message))
	}
	s.family, s.State = message[0], State(message[1])
	copy(s.id[:], message[4:])
	s.Inode = binary.NativeEndian.Uint32(message[messageSize-4:])
	s.Cookie = uint64(binary.NativeEndian.Uint32(s.id[idCookie+4:]))<<32 | uint64(binary.NativeEndian.Uint32(s.id[idCookie:]))
	s.Local = s.endpoint(idSource, 0)
	s.Remote = s.endpoint(idDestination, idDestinationPort)
	attributes, err := nl.ParseRouteAttr(message[messageSize:])
	if err != nil {
		return s, fmt.Errorf("read attributes: %w", err)
	}
	for _, a := range attributes {
		switch {
		case a.Attr.Type == attributeMark && len(a.Value) >= 4:
			s.Mark = binary.NativeEndian.Uint32(a.Value)
		case a.Attr.Type == attributeCgroupID && len(a.Value) >= 8:
			s.Cgroup = binary.NativeEndian.Uint64(a.Value)
		case a.Attr.Type&^unix.NLA_F_NESTED == attributeStorages:
			if s.Tag, err = parseStorage(a.Value); err != nil {
				return s, err
			}
		}
	}
	return s, nil
}

// parseStorage reads the value of the one map that was asked for.
func parseStorage(nested []byte) ([]byte, error) {
	for _, kind := range []uint16{storage, storageValue} {
		attributes, err := nl.ParseRouteAttr(nested)
		if err != nil {
			return nil, fmt.Errorf("read storage: %w", err)
		}
		nested = nil
		for _, a := range attributes {
			if a.Attr.Type&^unix.NLA_F_NESTED == kind {
				nested = a.Value
			}
		}
	}
	return nested, nil
}

func (s *Socket) endpoint(address, port int) netip.AddrPort {
	ip := netip.AddrFrom16([16]byte(s.id[address : address+16])).Unmap()
	if s.family == unix.AF_INET {
		ip = netip.AddrFrom4([4]byte(s.id[address : address+4]))
	}
	return netip.AddrPortFrom(ip, binary.BigEndian.Uint16(s.id[port:]))
}

// Lives tells whether a socket that was listed is still connected.
func (s Socket) Lives() (bool, error) {
	found, err := ask(0, request{family: s.family, states: ^uint32(0), id: s.id}, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for socket %s -> %s: %w", s.Local, s.Remote, err)
	}
	return len(found) == 1 && found[0].State != TimeWait, nil
}

// ErrUnsupported is wrapped by Destroy where the kernel cannot (CONFIG_INET_DIAG_DESTROY).
var ErrUnsupported = errors.New("the kernel cannot end sockets")

// Destroy ends a socket as its peer's reset would: whoever uses it gets ECONNABORTED, and its peer a reset. To end one that is
// gone is no error.
func (s Socket) Destroy() error {
	question := nl.NewNetlinkRequest(nl.SOCK_DESTROY, unix.NLM_F_ACK)
	question.AddData(request{family: s.family, states: ^uint32(0), id: s.id})
	_, err := question.Execute(unix.NETLINK_INET_DIAG, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		err = ErrUnsupported
	}
	return fmt.Errorf("end socket %s -> %s: %w", s.Local, s.Remote, err)
}
