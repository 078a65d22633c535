package workload

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"unique"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/skew"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// unpack reads the message that a resource holds, which must be of its type.
func unpack[M proto.Message](body *anypb.Any, into M) (M, error) {
	if err := body.UnmarshalTo(into); err != nil {
		return into, fmt.Errorf("decode %s: %w", body.GetTypeUrl(), err)
	}
	return into, nil
}

// endpointPorts finds the Services of another endpoint of a service, nil if
// there is none.
type endpointPorts func(serviceKey string) map[string][]Port

// unpackOwn reads a message that only Ambit's controller sends, and refuses what of it
// is not known.
func unpackOwn[M proto.Message](body *anypb.Any, into M) (M, error) {
	into, err := unpack(body, into)
	if err == nil {
		err = skew.Check(into)
	}
	return into, err
}

// parseWorkload reads w, which the controller named name. Errors name the field.
func parseWorkload(name string, w *api.Workload, others endpointPorts) (*Workload, error) {
	if w.GetUid() == "" {
		return nil, errors.New("uid: empty")
	}
	if w.GetUid() != name {
		return nil, fmt.Errorf("uid: %q, want the resource's name", w.GetUid())
	}
	out := &Workload{
		UID: name, Name: within(name, w.GetName()), Namespace: intern(w.GetNamespace()),
		Network: intern(w.GetNetwork()), ClusterID: intern(w.GetClusterId()), Node: intern(w.GetNode()),
		Locality: Locality{
			Region:  intern(w.GetLocality().GetRegion()),
			Zone:    intern(w.GetLocality().GetZone()),
			Subzone: intern(w.GetLocality().GetSubzone()),
		},
		NativeTunnel:      w.GetNativeTunnel(),
		Weight:            1,
		Authorizations:    w.GetAuthorizationPolicies(),
		CanonicalName:     intern(w.GetCanonicalName()),
		CanonicalRevision: intern(w.GetCanonicalRevision()),
		Owner:             intern(w.GetWorkloadName()),
	}
	if w.Capacity != nil {
		out.Weight = w.Capacity.GetValue()
	}
	return out, firstError(
		out.setAddresses(w.GetAddresses()),
		out.setIdentity(w),
		out.setEnums(w),
		out.setServices(w.GetServices(), others),
		out.setWaypoint(w.GetWaypoint()),
		out.setExtensions(w.GetExtensions()),
	)
}

func (w *Workload) setAddresses(raw [][]byte) error {
	for i, b := range raw {
		addr, err := parseAddr(b)
		if err != nil {
			return fmt.Errorf("addresses[%d]: %w", i, err)
		}
		if !slices.Contains(w.Addresses, addr) {
			w.Addresses = append(w.Addresses, addr)
		}
	}
	return nil
}

// setIdentity fills in what a controller may leave out.
func (w *Workload) setIdentity(in *api.Workload) (err error) {
	w.Identity, err = spiffe.New(
		intern(orElse(in.GetTrustDomain(), DefaultTrustDomain)),
		w.Namespace,
		intern(orElse(in.GetServiceAccount(), DefaultServiceAccount)),
	)
	if err != nil {
		return fmt.Errorf("trust_domain, namespace, service_account: %w", err)
	}
	return nil
}

func (w *Workload) setEnums(in *api.Workload) error {
	switch p := in.GetTunnelProtocol(); p {
	case api.TunnelProtocol_NONE:
		w.Protocol = Plain
	case api.TunnelProtocol_HBONE:
		w.Protocol = HBONE
	default:
		return fmt.Errorf("tunnel_protocol: %s is not supported", p)
	}
	switch s := in.GetStatus(); s {
	case api.WorkloadStatus_HEALTHY:
		w.Healthy = true
	case api.WorkloadStatus_UNHEALTHY:
	default:
		return fmt.Errorf("status: %s is not known", s)
	}
	switch m := in.GetNetworkMode(); m {
	case api.NetworkMode_STANDARD:
	case api.NetworkMode_HOST_NETWORK:
		w.HostNetwork = true
	default:
		return fmt.Errorf("network_mode: %s is not known", m)
	}
	// For logs and metrics only: an unknown one is worth no refusal.
	if name, ok := api.WorkloadType_name[int32(in.GetWorkloadType())]; ok {
		w.Kind = intern(strings.ToLower(name))
	}
	return nil
}

// setServices uses the map of another endpoint that says the same: the pods of a
// service mostly do, and a map each would be most of what they take.
func (w *Workload) setServices(in map[string]*api.PortList, others endpointPorts) error {
	keys := slices.Sorted(maps.Keys(in))
	if len(keys) > 0 {
		if same := others(keys[0]); samePorts(same, in) {
			w.Services = same
			return nil
		}
	}
	w.Services = make(map[string][]Port, len(in))
	for _, key := range keys {
		if err := checkServiceKey(key); err != nil {
			return fmt.Errorf("services: %w", err)
		}
		ports, err := parsePorts(in[key].GetPorts())
		if err != nil {
			return fmt.Errorf("services[%s].%w", key, err)
		}
		if i := slices.IndexFunc(ports, func(p Port) bool { return p.Target == 0 }); i >= 0 {
			return fmt.Errorf("services[%s].ports[%d].target_port: empty", key, i)
		}
		w.Services[intern(key)] = ports
	}
	return nil
}

// samePorts tells whether in would be read as out.
func samePorts(out map[string][]Port, in map[string]*api.PortList) bool {
	if len(out) != len(in) {
		return false
	}
	for key, ports := range in {
		if !slices.EqualFunc(out[key], ports.GetPorts(), func(p Port, in *api.Port) bool {
			return uint32(p.Service) == in.GetServicePort() && uint32(p.Target) == in.GetTargetPort() && p.App == appOf(in)
		}) {
			return false
		}
	}
	return true
}

func (w *Workload) setWaypoint(in *api.GatewayAddress) (err error) {
	if in != nil {
		w.Waypoint, err = parseGateway("waypoint", in)
	}
	return err
}

// checkServiceKey demands namespace/hostname.
func checkServiceKey(key string) error {
	namespace, hostname, ok := strings.Cut(key, "/")
	if !ok || namespace == "" || hostname == "" || strings.Contains(hostname, "/") {
		return fmt.Errorf("key %q: want namespace/hostname", key)
	}
	return nil
}

func parsePorts(in []*api.Port) ([]Port, error) {
	out := make([]Port, 0, len(in))
	for i, p := range in {
		service, target := p.GetServicePort(), p.GetTargetPort()
		if service == 0 || service > maxPort {
			return nil, fmt.Errorf("ports[%d].service_port: %d, want 1 to %d", i, service, maxPort)
		}
		if target > maxPort {
			return nil, fmt.Errorf("ports[%d].target_port: %d, want at most %d", i, target, maxPort)
		}
		out = append(out, Port{Service: uint16(service), Target: uint16(target), App: appOf(p)})
	}
	return out, nil
}

// appOf is a hint: an unknown one is as good as none.
func appOf(p *api.Port) string {
	if p.GetAppProtocol() == api.AppProtocol_UNKNOWN {
		return ""
	}
	return api.AppProtocol_name[int32(p.GetAppProtocol())]
}

const maxPort = 65535

func parseGateway(field string, in *api.GatewayAddress) (*Gateway, error) {
	port := in.GetHboneMtlsPort()
	if port == 0 || port > maxPort {
		return nil, fmt.Errorf("%s.hbone_mtls_port: %d, want 1 to %d", field, port, maxPort)
	}
	out := &Gateway{HBONEPort: uint16(port)}
	switch d := in.GetDestination().(type) {
	case *api.GatewayAddress_Hostname:
		out.ServiceKey = ServiceKey(d.Hostname.GetNamespace(), d.Hostname.GetHostname())
		if err := checkServiceKey(out.ServiceKey); err != nil {
			return nil, fmt.Errorf("%s.hostname: %w", field, err)
		}
	case *api.GatewayAddress_Address:
		addr, err := parseNetworkAddr(d.Address)
		if err != nil {
			return nil, fmt.Errorf("%s.%w", field, err)
		}
		out.Address = addr
	default:
		return nil, fmt.Errorf("%s.destination: empty", field)
	}
	return out, nil
}

// parseNetworkAddr reads one address; ranges are not supported.
func parseNetworkAddr(in *api.NetworkAddress) (netip.Addr, error) {
	addr, err := parseAddr(in.GetAddress())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("address: %w", err)
	}
	if in.Length != nil && int(in.GetLength()) != 8*len(in.GetAddress()) {
		return netip.Addr{}, fmt.Errorf("length: %d, address ranges are not supported", in.GetLength())
	}
	return addr, nil
}

// parseAddr reads a raw address, 4 or 16 bytes, that a peer can have.
func parseAddr(b []byte) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.Addr{}, fmt.Errorf("%d bytes, want 4 or 16", len(b))
	}
	addr = normal(addr)
	if addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("%s is nobody's address", addr)
	}
	return addr, nil
}

// intern returns a string that all who have the same one share: most of what is
// said of a workload is said of a thousand others.
func intern(s string) string { return unique.Make(s).Value() }

// within returns part as a part of whole, if it is its end: a pod's name is of
// its UID.
func within(whole, part string) string {
	if strings.HasSuffix(whole, part) {
		return whole[len(whole)-len(part):]
	}
	return part
}

func orElse(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
}

// firstError keeps a rejection to one line.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
