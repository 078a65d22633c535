package workload

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// parseService reads s, which the controller named name. Errors name the field.
func parseService(name string, s *api.Service) (*Service, error) {
	key := ServiceKey(s.GetNamespace(), s.GetHostname())
	if err := checkServiceKey(key); err != nil {
		return nil, fmt.Errorf("namespace, hostname: %w", err)
	}
	if key != name {
		return nil, fmt.Errorf("namespace, hostname: %q, want the resource's name", key)
	}
	out := &Service{Key: key, Name: s.GetName(), Namespace: s.GetNamespace(), Hostname: s.GetHostname()}
	var portsErr error
	out.Ports, portsErr = parsePorts(s.GetPorts())
	return out, firstError(
		portsErr,
		out.setAddresses(s.GetAddresses()),
		out.setIdentities(s.GetSubjectAltNames()),
		out.setWaypoint(s),
		out.setLoadBalancing(s.GetLoadBalancing()),
		out.setVisibility(s.GetVisibility()),
		out.setExtensions(s.GetExtensions()),
	)
}

// setAddresses keeps those of the local network: the others are reached by
// gateways, and their numbers mean nothing here.
func (s *Service) setAddresses(in []*api.NetworkAddress) error {
	for i, a := range in {
		addr, err := parseNetworkAddr(a)
		if err != nil {
			return fmt.Errorf("addresses[%d].%w", i, err)
		}
		if a.GetNetwork() == "" && !slices.Contains(s.Addresses, addr) {
			s.Addresses = append(s.Addresses, addr)
		}
	}
	return nil
}

func (s *Service) setIdentities(in []string) error {
	for i, uri := range in {
		id, err := spiffe.Parse(uri)
		if err != nil {
			return fmt.Errorf("subject_alt_names[%d]: %w", i, err)
		}
		s.Identities = append(s.Identities, id)
	}
	return nil
}

func (s *Service) setWaypoint(in *api.Service) (err error) {
	switch {
	case in.GetWaypoint() != nil:
		s.Waypoint, err = parseGateway("waypoint", in.GetWaypoint())
	case len(in.GetWeightedWaypoints()) > 0:
		s.Waypoint, err = parseGateway("weighted_waypoints[0].destination", in.GetWeightedWaypoints()[0].GetDestination())
	}
	return err
}

func (s *Service) setLoadBalancing(in *api.LoadBalancing) error {
	switch m := in.GetMode(); m {
	// PASSTHROUGH differs only without endpoints, and such connections are refused here.
	case api.LoadBalancing_UNSPECIFIED_MODE, api.LoadBalancing_PASSTHROUGH:
		s.Mode = AnyLocality
	case api.LoadBalancing_STRICT:
		s.Mode = Strict
	case api.LoadBalancing_FAILOVER:
		s.Mode = Failover
	default:
		return fmt.Errorf("load_balancing.mode: %s is not known", m)
	}
	switch h := in.GetHealthPolicy(); h {
	case api.LoadBalancing_ONLY_HEALTHY:
	case api.LoadBalancing_ALLOW_ALL:
		s.AllowUnhealthy = true
	default:
		return fmt.Errorf("load_balancing.health_policy: %s is not known", h)
	}
	for i, p := range in.GetRoutingPreference() {
		scope, ok := scopes[p]
		if !ok {
			return fmt.Errorf("load_balancing.routing_preference[%d]: %s is not known", i, p)
		}
		s.Scopes = append(s.Scopes, scope)
	}
	return nil
}

var scopes = map[api.LoadBalancing_Scope]Scope{
	api.LoadBalancing_REGION:  Region,
	api.LoadBalancing_ZONE:    Zone,
	api.LoadBalancing_SUBZONE: Subzone,
	api.LoadBalancing_NODE:    Node,
	api.LoadBalancing_CLUSTER: Cluster,
	api.LoadBalancing_NETWORK: Network,
}

func (s *Service) setVisibility(in api.Service_Visibility) error {
	switch in {
	case api.Service_PUBLIC:
	case api.Service_NAMESPACE:
		s.NamespaceOnly = true
	default:
		return fmt.Errorf("visibility: %s is not known", in)
	}
	return nil
}

// setExtensions reads those that are ours. By the protocol the others may be ignored.
func (s *Service) setExtensions(in []*api.Extension) error {
	for i, e := range in {
		var err error
		switch e.GetName() {
		case SessionAffinityExtension:
			err = s.setAffinity(e)
		case WaypointFallbackExtension:
			if _, err = unpackOwn(e.GetConfig(), &mesh.WaypointFallback{}); err != nil {
				err = fmt.Errorf(": %w", err)
			}
			s.WaypointFallback = err == nil
		case WaypointAnnouncedExtension:
			if s.WaypointAnnounced, err = parseAnnounced(e); err != nil {
				err = fmt.Errorf(": %w", err)
			}
		}
		if err != nil {
			return fmt.Errorf("extensions[%d].config%w", i, err)
		}
	}
	return nil
}

func (s *Service) setAffinity(e *api.Extension) error {
	affinity, err := unpack(e.GetConfig(), &mesh.SessionAffinity{})
	if err != nil {
		return fmt.Errorf(": %w", err)
	}
	s.Affinity = time.Duration(affinity.GetClientIpTimeoutSeconds()) * time.Second
	if s.Affinity == 0 {
		return errors.New(".client_ip_timeout_seconds: 0")
	}
	return nil
}
