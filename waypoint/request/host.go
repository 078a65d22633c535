package request

import (
	"net/netip"
	"strconv"
	"strings"
)

// maxHost is the longest name there is: RFC 1035 section 2.3.4.
const maxHost = 253

// readHost splits what a client calls the host: RFC 3986 section 3.2, without users.
func readHost(authority string) (host string, port uint16, err error) {
	host = authority
	if strings.HasPrefix(host, "[") {
		return readAddress(host)
	}
	if i := strings.IndexByte(host, ':'); i >= 0 {
		if port, err = readPort(host[i+1:]); err != nil {
			return "", 0, err
		}
		host = host[:i]
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "" || len(host) > maxHost {
		return "", 0, bad("host")
	}
	label := 0
	for i := range len(host) {
		switch c := host[i]; {
		case 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_':
			label++
		case c == '.' && label > 0:
			label = 0
		default:
			return "", 0, bad("host")
		}
	}
	if label == 0 {
		return "", 0, bad("host")
	}
	return host, port, nil
}

// readAddress reads an IPv6 address in brackets, and a port.
func readAddress(authority string) (string, uint16, error) {
	end := strings.IndexByte(authority, ']')
	if end < 0 {
		return "", 0, bad("host")
	}
	addr, err := netip.ParseAddr(authority[1:end])
	if err != nil || !addr.Is6() || addr.Zone() != "" {
		return "", 0, bad("host")
	}
	host, rest := "["+addr.String()+"]", authority[end+1:]
	if rest == "" {
		return host, 0, nil
	}
	if rest[0] != ':' {
		return "", 0, bad("host")
	}
	port, err := readPort(rest[1:])
	return host, port, err
}

func readPort(s string) (uint16, error) {
	port, err := strconv.ParseUint(s, 10, 16)
	if err != nil || port == 0 || s[0] == '0' {
		return 0, bad("host: port")
	}
	if port == DefaultPort {
		port = 0
	}
	return uint16(port), nil
}
