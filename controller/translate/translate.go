// Package translate turns Kubernetes objects into the mesh model that data
// planes read. It is a pure function: the same objects, in whatever order, give
// the same resources.
//
//	pods.go       which pods are published, and which of them has an address
//	workload.go   pod -> workload
//	owner.go      pod -> the names that people know it by
//	service.go    Service -> service, and which of them has a virtual address
//	endpoints.go  EndpointSlices -> who serves which port of which service now
//	config.go     what concerns the mesh as a whole
//	policy.go     policies: to which pods they apply, what became of them
//	authorization.go targetrefs.go authorization_values.go
//	              AuthorizationPolicy -> authorization
//	mutualtls.go  PeerAuthentication -> authorizations that refuse plaintext, and
//	              what a workload's node has to guard
//	egress.go     EgressPolicy -> who may leave the mesh
//	request.go    AuthorizationPolicy -> what a waypoint asks about clients and requests
//	authentication.go
//	              RequestAuthentication -> which tokens a waypoint takes
//	waypoint.go   labels -> what is bound to which waypoint
//	route.go routehttp.go routegrpc.go routefilter.go
//	              routes -> what a waypoint does with requests for a Service
//
// Traffic that is captured no longer passes kube-proxy, so a Service has to mean
// here what it means there: endpoints are those, and only those, that kube-proxy
// would use.
//
// Invariants: an address stands for one workload or one service; a pod is
// reached through a tunnel if and only if it is in Input.Captured and has an
// address of its own; one that is to be captured, and is not yet, is not reached
// at all where it refuses plaintext; one that is to be let go refuses none, before it
// is reached by tunnels no longer; an object that cannot be expressed is reported and left
// out, and takes no other with it. A policy that cannot be expressed as it is
// written is sent in a reading that lets nothing pass which it would refuse: a
// DENY denies more, an ALLOW allows less. What narrows access is said by
// standard fields alone, so that a data plane which knows no others refuses the
// same; a dry run is the one thing that is sent and refuses nothing.
//
// Deciding who is captured is report's job, sending the result push's.
package translate

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/controller/resource"
)

// Input is everything that the result depends on. The objects are only read.
type Input struct {
	Pods     []*corev1.Pod
	Services []*corev1.Service
	Slices   []*discoveryv1.EndpointSlice
	Nodes    []*corev1.Node
	// ServiceCIDRs, of clusters that have them.
	ServiceCIDRs []*networkingv1.ServiceCIDR

	// Namespaces, of which only names and labels are looked at.
	Namespaces []*corev1.Namespace

	PeerAuthentications   []*v1alpha1.PeerAuthentication
	AuthorizationPolicies []*v1alpha1.AuthorizationPolicy
	EgressPolicies        []*v1alpha1.EgressPolicy

	RequestAuthentications []*v1alpha1.RequestAuthentication

	Gateways []*gateway.Gateway
	Routes   Routes
	// Bindings tells how far each is; nil stands for all Enforced, and none leaving.
	Bindings Bindings

	// Captured pods are those to be reached through tunnels.
	Captured Captured
	// Enrolled pods are those that are to be captured, whether they are or not; nil: none.
	Enrolled Enrolled
	// Leaving pods are those that are to be let go, as labels and nodes agree: they refuse no plaintext; nil: none.
	Leaving Leaving
	// Roots of the mesh's certificates, PEM, one each.
	Roots []string
	// Retiring are the fingerprints of those that sign no more.
	Retiring []string
	// Revoked is what is accepted no longer; nil while that is not known.
	Revoked *mesh.RevocationList

	Config Config
}

// Captured is the set of pods that are captured at one moment.
type Captured interface {
	Has(uid types.UID) bool
}

// Enrolled is the set of pods whose capture is asked for.
type Enrolled interface {
	// Since tells whether a pod is in it, and since when.
	Since(uid types.UID) (since time.Time, enrolled bool)
}

// Leaving is the set of pods that are to be let go.
type Leaving interface {
	Has(uid types.UID) bool
}

// Config of the mesh.
type Config struct {
	// TrustDomain of identities, such as cluster.local.
	TrustDomain string
	// ClusterID is the first part of workload names, such as Kubernetes.
	ClusterID string
	// SystemNamespace is where policies are for the whole mesh.
	SystemNamespace string
	// ClusterDomain ends Services' host names, such as cluster.local.
	ClusterDomain string
	// PodRanges are CIDRs of pods besides those of Nodes' spec.podCIDRs, for
	// networks that assign addresses their own way.
	PodRanges []string
	// ServiceRanges are CIDRs of Services besides those of ServiceCIDRs.
	ServiceRanges []string
}

// Result is the mesh model, and what became of the policies that are in it.
type Result struct {
	Resources resource.Resources
	// Policies of every object there is, ordered by kind, namespace and name.
	Policies []*Policy
	// Routes of every object that is attached to a Service, or wants to be, in the same order.
	Routes []*Route
	// Bound is what labels bind to waypoints, in no particular order.
	Bound []*Bound
	// Through are the waypoints, by namespace/name, that connections to a pod pass:
	// its own, then those of the Services that it serves.
	Through map[types.UID][]string
}

// Translate returns the mesh model. The error joins what could not be expressed
// and is missing from the result, which is good to be published all the same.
func Translate(in Input) (Result, error) {
	out := &output{resources: make(resource.Resources), trustDomain: in.Config.TrustDomain, through: make(map[types.UID][]string)}
	nodes := indexNodes(in.Nodes)
	pods := indexPods(in.Pods)
	services := indexServices(in.Services, pods, in.Config)
	serving := resolveEndpoints(in.Slices, services, pods)
	waypoints := indexWaypoints(in, pods)
	routes := indexRoutes(in.Routes, services, waypoints.bindsService)

	requests := indexRequests(in)
	policies := out.policies(in, pods, services, serving, waypoints, requests)
	authentications := indexAuthentications(in, waypoints, services, policies.all, serving)
	for _, p := range pods.all {
		out.guard(p, waypoints, policies, services, serving.ofPod[p])
		w := workloadOfPod(p, serving.ofPod[p], nodes, in)
		policies.attached[p].to(w)
		if waypoints.IsPod(p.Pod) {
			w.TunnelProtocol, w.NativeTunnel = workload.TunnelProtocol_HBONE, true
		}
		if names := requests.policiesAtWaypoints(p, waypoints, services, serving.ofPod[p]); len(names) > 0 {
			w.Extensions = append(w.Extensions, extension(waypointPoliciesExtension, &mesh.WaypointPolicies{Names: names}))
		}
		out.bindPod(p, w, waypoints, authentications)
		out.passes(p, w, waypoints, services)
		out.workload(w)
	}
	for _, e := range serving.external {
		e.service.uncaptured++
		out.workload(workloadOfEndpoint(e, nodes, in.Config))
	}
	for _, s := range services.all {
		out.bindService(s, waypoints, routes.of(s), requests, authentications)
		out.service(s)
	}
	out.requests(requests, waypoints)
	out.authentications(authentications)
	out.mesh(in)
	slices.SortFunc(out.outcomes, func(a, b *Policy) int {
		return cmp.Or(strings.Compare(string(a.Kind), string(b.Kind)), strings.Compare(a.key(), b.key()))
	})
	return Result{Resources: out.resources, Policies: out.outcomes, Routes: routes.outcomes, Bound: out.bound, Through: out.through}, errors.Join(out.problems...)
}
