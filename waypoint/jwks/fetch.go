package jwks

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"syscall"

	_ "golang.org/x/crypto/x509roots/fallback" // a waypoint's image has no roots of its own

	"github.com/ambit-mesh/ambit/internal/jwt"
)

// fetch keys once.
func (s *Store) fetch(ctx context.Context, from jwt.Source) (*jwt.Keys, error) {
	u, err := url.Parse(from.URI)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("is neither https://HOST/PATH nor http://SERVICE/PATH")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.cfg.TLS != nil {
		config = s.cfg.TLS.Clone()
	}
	if from.CertificateAuthority != "" {
		if config.RootCAs, err = jwt.ParseAuthorities(from.CertificateAuthority); err != nil {
			return nil, fmt.Errorf("the certificate authority: %w", err)
		}
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return s.dial(ctx, address, u.Scheme == "http")
		},
		TLSClientConfig: config, DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 32 << 10,
	}
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from.URI, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode >= 300 && response.StatusCode < 400:
		return nil, fmt.Errorf("answered with a redirect (%d), which is not followed", response.StatusCode)
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("answered with %d", response.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, jwt.MaxKeySet+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	return jwt.ParseKeys(text)
}

// dial a host: a Service through the mesh, or what is outside, for TLS alone.
func (s *Store) dial(ctx context.Context, address string, plain bool) (net.Conn, error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("%q is no port", portText)
	}
	if conn, ok, err := s.cfg.Mesh.DialService(ctx, host, uint16(port), plain); ok {
		return conn, err
	}
	if plain {
		return nil, fmt.Errorf("%s is no Service of the mesh: http is for those alone", host)
	}
	// Judged by the address that is connected to: a name may stand for another one by then.
	dialer := net.Dialer{Control: func(_, address string, _ syscall.RawConn) error { return checkAddress(address) }}
	return dialer.DialContext(ctx, "tcp", address)
}

// metadata are addresses behind which clouds tell a machine its secrets, besides those
// that are link-local.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("fd00:ec2::/32"),      // AWS
	netip.MustParsePrefix("fd20:ce::254/128"),   // Google
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle
	netip.MustParsePrefix("0.0.0.0/8"),          // this host: RFC 1122 section 3.2.1.3
	netip.MustParsePrefix("255.255.255.255/32"), // everybody here
	netip.MustParsePrefix("::/96"),              // IPv4 in disguise, long out of use
}

// translated are prefixes of IPv6 addresses that end in an IPv4 address.
var translated = []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48")}

// checkAddress refuses what only this machine reaches.
func checkAddress(address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	addr := at.Addr().WithZone("").Unmap()
	if slices.ContainsFunc(translated, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	if addr.Is6() && netip.MustParsePrefix("2002::/16").Contains(addr) { // 6to4
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[2:6]))
	}
	forbidden := slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(addr) })
	if forbidden || addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast() || addr.IsInterfaceLocalMulticast() {
		return fmt.Errorf("%s is not an address that keys may come from", addr)
	}
	return nil
}
