package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/skew"
)

// Bounds of what one policy makes a data plane look through for a connection.
// The controller keeps to them; who does not is refused rather than followed.
const (
	maxEgressPolicies   = 1024
	maxEgressExceptions = 1024
	maxEgressPorts      = 64
)

// setExtensions reads those that are ours. By the protocol the others may be ignored.
func (w *Workload) setExtensions(in []*api.Extension) error {
	seen := map[string]bool{}
	for i, e := range in {
		var err error
		switch e.GetName() {
		case MutualTLSExtension:
			err = w.setMutualTLS(e)
		case EgressPoliciesExtension:
			err = w.setEgressPolicies(e)
		case WaypointPoliciesExtension:
			err = w.setWaypointPolicies(e)
		case WaypointFallbackExtension:
			if _, err = unpackOwn(e.GetConfig(), &mesh.WaypointFallback{}); err != nil {
				err = fmt.Errorf("config: %w", err)
			}
			w.WaypointFallback = err == nil
		case WaypointAnnouncedExtension:
			w.WaypointAnnounced, err = parseAnnounced(e)
		default:
			continue
		}
		if err == nil && seen[e.GetName()] {
			err = fmt.Errorf("name: %q is there twice", e.GetName())
		}
		if seen[e.GetName()] = true; err != nil {
			return fmt.Errorf("extensions[%d].%w", i, err)
		}
	}
	return nil
}

func (w *Workload) setMutualTLS(e *api.Extension) error {
	m, err := unpackOwn(e.GetConfig(), &mesh.MutualTLS{})
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if w.MutualTLS, err = parseMode(m.GetMode()); err != nil {
		return fmt.Errorf("config.mode: %w", err)
	}
	w.AwaitsCapture = m.GetAwaitsCapture()
	for i, port := range m.GetStrictPorts() {
		if port == 0 || port > maxPort {
			return fmt.Errorf("config.strict_ports[%d]: %d, want 1 to %d", i, port, maxPort)
		}
		w.StrictPorts = append(w.StrictPorts, uint16(port))
	}
	return nil
}

func (w *Workload) setEgressPolicies(e *api.Extension) error {
	m, err := unpackOwn(e.GetConfig(), &mesh.EgressPolicies{})
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	w.EgressPolicies, err = policyNames("config.names", m.GetNames(), maxEgressPolicies)
	return err
}

func parseAnnounced(e *api.Extension) (*Gateway, error) {
	m, err := unpackOwn(e.GetConfig(), &mesh.WaypointAnnounced{})
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if !isPolicyKey(m.GetService()) {
		return nil, fmt.Errorf("config.service: %q, want namespace/hostname", m.GetService())
	}
	return &Gateway{ServiceKey: intern(m.GetService())}, nil
}

func (w *Workload) setWaypointPolicies(e *api.Extension) error {
	m, err := unpackOwn(e.GetConfig(), &mesh.WaypointPolicies{})
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	w.WaypointPolicies, err = policyNames("config.names", m.GetNames(), maxRequestPolicies)
	return err
}

// policyNames reads namespace/name, and returns them sorted, each once.
func policyNames(field string, in []string, most int) (names []string, err error) {
	if len(in) > most {
		return nil, fmt.Errorf("%s: %d, want at most %d", field, len(in), most)
	}
	for i, name := range in {
		if !isPolicyKey(name) {
			return nil, fmt.Errorf("%s[%d]: %q, want namespace/name", field, i, name)
		}
		names = append(names, intern(name))
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func isPolicyKey(key string) bool {
	namespace, name, ok := strings.Cut(key, "/")
	return ok && namespace != "" && name != "" && !strings.Contains(name, "/")
}

func parseMode(in mesh.MutualTLS_Mode) (MutualTLSMode, error) {
	switch in {
	case mesh.MutualTLS_PERMISSIVE:
		return Permissive, nil
	case mesh.MutualTLS_STRICT:
		return StrictMutualTLS, nil
	case mesh.MutualTLS_DISABLE:
		return DisabledMutualTLS, nil
	}
	return Permissive, fmt.Errorf("%s is not known", in)
}

// parseNamespace reads n, which the controller named name.
func parseNamespace(name string, n *mesh.Namespace) (Namespace, error) {
	if name == "" || n.GetName() != name {
		return Namespace{}, fmt.Errorf("name: %q, want the resource's name", n.GetName())
	}
	mode, err := parseMode(n.GetMutualTls())
	if err != nil {
		return Namespace{}, fmt.Errorf("mutual_tls: %w", err)
	}
	if err := skew.Check(n); err != nil {
		return Namespace{}, err
	}
	return Namespace{MutualTLS: mode, EgressDenied: n.GetEgressDenied()}, nil
}

// parseEgressPolicy reads p, which the controller named name. Errors name the field.
func parseEgressPolicy(name string, p *mesh.EgressPolicy) (*EgressPolicy, error) {
	key := p.GetNamespace() + "/" + p.GetName()
	if key != name || !isPolicyKey(key) {
		return nil, fmt.Errorf("namespace, name: %q, want the resource's name, namespace/name", key)
	}
	if err := skew.Check(p); err != nil {
		return nil, err
	}
	out := &EgressPolicy{Key: name, DryRun: p.GetDryRun()}
	switch a := p.GetAction(); a {
	case mesh.EgressPolicy_ALLOW:
		if len(p.GetExceptions()) > 0 {
			return nil, errors.New("exceptions: of a policy that allows everything")
		}
	case mesh.EgressPolicy_DENY:
		out.Deny = true
	default:
		return nil, fmt.Errorf("action: %s is not known", a)
	}
	if len(p.GetExceptions()) > maxEgressExceptions {
		return nil, fmt.Errorf("exceptions: %d, want at most %d", len(p.GetExceptions()), maxEgressExceptions)
	}
	for i, e := range p.GetExceptions() {
		exception, err := parseEgressException(e)
		if err != nil {
			return nil, fmt.Errorf("exceptions[%d].%w", i, err)
		}
		out.Exceptions = append(out.Exceptions, exception)
	}
	return out, nil
}

func parseEgressException(in *mesh.EgressException) (out EgressException, err error) {
	switch d := in.GetDestination().(type) {
	case *mesh.EgressException_Cidr:
		if out.Prefix, err = parsePrefix(d.Cidr); err != nil {
			return out, fmt.Errorf("cidr: %w", err)
		}
	case *mesh.EgressException_DnsName:
		if out.Name, out.Wildcard, err = parseDNSName(d.DnsName); err != nil {
			return out, fmt.Errorf("dns_name: %w", err)
		}
	case nil:
		if len(in.GetPorts()) == 0 {
			return out, errors.New("ports: empty, and there is no destination: it would except everything")
		}
	default:
		return out, errors.New("destination: not known")
	}
	if len(in.GetPorts()) > maxEgressPorts {
		return out, fmt.Errorf("ports: %d, want at most %d", len(in.GetPorts()), maxEgressPorts)
	}
	for i, p := range in.GetPorts() {
		port, err := parseEgressPort(p)
		if err != nil {
			return out, fmt.Errorf("ports[%d].%w", i, err)
		}
		out.Ports = append(out.Ports, port)
	}
	return out, nil
}

// parsePrefix reads a range of addresses in the form in which addresses are
// compared. A range of IPv4 in 16 bytes is none of those.
func parsePrefix(text string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	if prefix.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%s: write it as a range of IPv4", text)
	}
	return prefix.Masked(), nil
}

// parseDNSName reads a name, or `*.` and what names end in.
func parseDNSName(text string) (name string, wildcard bool, err error) {
	name, wildcard = strings.CutPrefix(text, "*.")
	const maxName, maxLabel = 253, 63 // RFC 1035 section 2.3.4
	if name == "" || len(name) > maxName {
		return "", false, fmt.Errorf("%q: %d characters, want 1 to %d", text, len(name), maxName)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > maxLabel || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", false, fmt.Errorf("%q: label %q is not of a name in lower case", text, label)
		}
	}
	return name, wildcard, nil
}

func parseEgressPort(in *mesh.EgressPort) (out EgressPort, err error) {
	switch p := in.GetProtocol(); p {
	case mesh.EgressPort_ANY:
		out.TCP, out.UDP = true, true
	case mesh.EgressPort_TCP:
		out.TCP = true
	case mesh.EgressPort_UDP:
		out.UDP = true
	default:
		return out, fmt.Errorf("protocol: %s is not known", p)
	}
	first, last := in.GetPort(), in.GetEndPort()
	if first == 0 || first > maxPort {
		return out, fmt.Errorf("port: %d, want 1 to %d", first, maxPort)
	}
	if last == 0 {
		last = first
	}
	if last < first || last > maxPort {
		return out, fmt.Errorf("end_port: %d, want %d to %d", last, first, maxPort)
	}
	out.First, out.Last = uint16(first), uint16(last)
	return out, nil
}
