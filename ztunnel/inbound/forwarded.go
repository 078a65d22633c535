package inbound

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/internal/conns"
)

// forwardedHeader says for whom a connection is made (RFC 7239).
const forwardedHeader = "Forwarded"

// clientOf returns who the application is to see. That is the peer, unless it is a
// pod of a waypoint that stands before this port: then it is who the waypoint
// speaks for. Whatever anybody else says of clients is not looked at. Its error is a
// *conns.Failure.
func (l *Listener) clientOf(t accept.Tunnel, dst netip.AddrPort, header http.Header) (netip.AddrPort, error) {
	target, snapshot := l.cfg.Target(), l.cfg.Snapshot()
	if target == nil {
		return t.Remote, nil // admission refuses it
	}
	peer, ok := snapshot.WorkloadByAddr(t.Remote.Addr())
	if !ok || peer.Identity != t.Peer || !peer.NativeTunnel {
		return t.Remote, nil
	}
	// What the mesh says of the pod; its own node knows nothing of Services.
	if published, ok := snapshot.WorkloadByUID(target.UID); ok {
		target = published
	}
	for _, waypoint := range snapshot.Speakers(target, dst.Port()) {
		if waypoint.StandsThere(peer) {
			client, err := parseForwarded(header.Values(forwardedHeader))
			if err != nil {
				return netip.AddrPort{}, conns.Fail(conns.BadForwarded, fmt.Errorf("waypoint %s: %w", peer.UID, err))
			}
			return client, nil
		}
	}
	return t.Remote, nil
}

// parseForwarded reads the one address and port that a waypoint names (RFC 7239
// section 4): a quoted string, with the address in brackets if it is of IPv6.
// Parameters but for are ignored, chains and names refused.
func parseForwarded(values []string) (netip.AddrPort, error) {
	if len(values) != 1 {
		return netip.AddrPort{}, fmt.Errorf("%d fields forwarded, want one", len(values))
	}
	var found string
	for pair := range strings.SplitSeq(values[0], ";") {
		name, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok {
			return netip.AddrPort{}, errors.New("forwarded: a parameter without a value")
		}
		if !strings.EqualFold(name, "for") {
			continue
		}
		if found != "" {
			return netip.AddrPort{}, errors.New("forwarded: for is there twice")
		}
		if found = value; found == "" {
			return netip.AddrPort{}, errors.New("forwarded: for is empty")
		}
	}
	if len(found) < 2 || found[0] != '"' || found[len(found)-1] != '"' {
		return netip.AddrPort{}, errors.New("forwarded: for is no quoted address and port")
	}
	client, err := netip.ParseAddrPort(found[1 : len(found)-1])
	if err != nil {
		return netip.AddrPort{}, errors.New("forwarded: for is no address and port")
	}
	addr := client.Addr().Unmap()
	if addr.Zone() != "" || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || client.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("forwarded: %s is no client", client)
	}
	return netip.AddrPortFrom(addr, client.Port()), nil
}
