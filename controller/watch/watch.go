// Package watch keeps the Kubernetes objects that the controller works with, and
// tells when there is something new.
//
//	watch.go    informers, and their contents as typed lists
//	policies.go those of the policies that people write
//	gatewayapi.go those of the Gateway API's objects
//	optional.go a kind that the cluster may not know
//	strip.go    what of an object is kept in memory
//	trigger.go  many changes, one call
//	catchup.go  no older than Kubernetes, for who takes over
//
// It is level-based: a change says that there is something to look at, not what
// it is. Who is told looks at everything.
//
// Invariants: the lists are complete once WaitSynced returned, and never before;
// what is stripped from a pod is not there for anybody in this process.
//
// What objects mean is translate's job. Workload objects are status's.
package watch

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// Objects are all objects of a cluster that make up its mesh. They are shared:
// nobody may change them.
type Objects struct {
	Pods       []*corev1.Pod
	Services   []*corev1.Service
	Slices     []*discoveryv1.EndpointSlice
	Nodes      []*corev1.Node
	Namespaces []*corev1.Namespace
	// ServiceCIDRs are none in a cluster that is older than Kubernetes 1.33.
	ServiceCIDRs []*networkingv1.ServiceCIDR
	PolicyObjects
	GatewayObjects
}

// Sources are the informers. Others may add handlers and indexes to them until
// Run is called.
type Sources struct {
	factory      informers.SharedInformerFactory
	pods         corelisters.PodLister
	services     corelisters.ServiceLister
	slices       discoverylisters.EndpointSliceLister
	nodes        corelisters.NodeLister
	namespaces   corelisters.NamespaceLister
	serviceCIDRs cache.SharedIndexInformer
	policies     *policies
	gatewayAPI   *gatewayAPI
	// restricting are those of which nothing may be missed: see CatchUp.
	restricting []kept
}

// New prepares informers for one cluster, its policies and its Gateways. Changed is called, from many
// goroutines, whenever one of the Objects may have changed.
func New(client kubernetes.Interface, from Policies, gateways GatewayAPI, changed func()) (*Sources, error) {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(strip))
	core := factory.Core().V1()
	slices := factory.Discovery().V1().EndpointSlices()
	policies, err := newPolicies(from, changed)
	if err != nil {
		return nil, err
	}
	gatewayAPI, err := newGatewayAPI(gateways, changed)
	if err != nil {
		return nil, err
	}
	s := &Sources{
		factory:      factory,
		pods:         core.Pods().Lister(),
		services:     core.Services().Lister(),
		slices:       slices.Lister(),
		nodes:        core.Nodes().Lister(),
		namespaces:   core.Namespaces().Lister(),
		serviceCIDRs: serviceCIDRs(client),
		policies:     policies,
		gatewayAPI:   gatewayAPI,
	}
	s.restricting = []kept{
		{"namespaces", core.Namespaces().Informer().GetStore(), func(ctx context.Context) (runtime.Object, error) {
			return client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		}},
		{"peer authentications", policies.peerAuthentications.GetStore(), listFrom(from.PeerAuthentications)},
		{"authorization policies", policies.authorizationPolicies.GetStore(), listFrom(from.AuthorizationPolicies)},
		{"egress policies", policies.egressPolicies.GetStore(), listFrom(from.EgressPolicies)},
		{"request authentications", policies.requestAuthentications.GetStore(), listFrom(from.RequestAuthentications)},
	}
	tell := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { changed() },
		UpdateFunc: func(old, new any) {
			if !sameContent(old, new) {
				changed()
			}
		},
		DeleteFunc: func(any) { changed() },
	}
	for _, informer := range []cache.SharedIndexInformer{
		core.Pods().Informer(), core.Services().Informer(), slices.Informer(), core.Nodes().Informer(), core.Namespaces().Informer(),
		s.serviceCIDRs,
	} {
		if _, err := informer.AddEventHandler(tell); err != nil {
			return nil, fmt.Errorf("watch: %w", err)
		}
	}
	return s, nil
}

// serviceCIDRs of a cluster that may not know any.
func serviceCIDRs(client kubernetes.Interface) cache.SharedIndexInformer {
	source := Optionally(client.NetworkingV1().ServiceCIDRs(), func() runtime.Object { return &networkingv1.ServiceCIDRList{} })
	return cache.NewSharedIndexInformer(source, &networkingv1.ServiceCIDR{}, 0, cache.Indexers{})
}

// sameContent tells whether an update changed nothing that is kept: nodes and
// controllers write signs of life all the time.
func sameContent(old, new any) bool {
	a, isObject := old.(runtime.Object)
	b, isObjectToo := new.(runtime.Object)
	if !isObject || !isObjectToo {
		return false
	}
	a, b = a.DeepCopyObject(), b.DeepCopyObject()
	for _, o := range []runtime.Object{a, b} {
		accessor, err := meta.Accessor(o)
		if err != nil {
			return false
		}
		accessor.SetResourceVersion("")
	}
	return equality.Semantic.DeepEqual(a, b)
}

// Pods, as others read and index them.
func (s *Sources) Pods() coreinformers.PodInformer { return s.factory.Core().V1().Pods() }

// Nodes, as others read them.
func (s *Sources) Nodes() coreinformers.NodeInformer { return s.factory.Core().V1().Nodes() }

// Namespaces, as others read them.
func (s *Sources) Namespaces() coreinformers.NamespaceInformer {
	return s.factory.Core().V1().Namespaces()
}

// Run the informers until ctx ends.
func (s *Sources) Run(ctx context.Context) error {
	s.factory.Start(ctx.Done())
	var running sync.WaitGroup
	for _, informer := range s.own() {
		running.Go(func() { informer.RunWithContext(ctx) })
	}
	<-ctx.Done()
	s.factory.Shutdown()
	running.Wait()
	return nil
}

// WaitSynced waits until every informer has a complete list. Call it after Run
// has begun or while it begins.
func (s *Sources) WaitSynced(ctx context.Context) error {
	core := s.factory.Core().V1()
	var own []cache.InformerSynced
	for _, informer := range s.own() {
		own = append(own, informer.HasSynced)
	}
	if !cache.WaitForCacheSync(ctx.Done(), append(own,
		core.Pods().Informer().HasSynced,
		core.Services().Informer().HasSynced,
		core.Nodes().Informer().HasSynced,
		core.Namespaces().Informer().HasSynced,
		s.factory.Discovery().V1().EndpointSlices().Informer().HasSynced,
	)...) {
		return fmt.Errorf("wait for Kubernetes objects: %w", context.Cause(ctx))
	}
	return nil
}

// own are the informers that the factory does not run.
func (s *Sources) own() []cache.SharedIndexInformer {
	return append(append(s.policies.all(), s.gatewayAPI.all()...), s.serviceCIDRs)
}

// Objects returns what is there now.
func (s *Sources) Objects() (Objects, error) {
	var o Objects
	var errs [8]error
	o.Pods, errs[0] = s.pods.List(labels.Everything())
	o.Services, errs[1] = s.services.List(labels.Everything())
	o.Slices, errs[2] = s.slices.List(labels.Everything())
	o.Nodes, errs[3] = s.nodes.List(labels.Everything())
	o.Namespaces, errs[4] = s.namespaces.List(labels.Everything())
	o.PolicyObjects, errs[5] = s.Policies()
	o.GatewayObjects, errs[6] = s.GatewayAPI()
	o.ServiceCIDRs, errs[7] = list[*networkingv1.ServiceCIDR](s.serviceCIDRs)
	if err := errors.Join(errs[:]...); err != nil {
		return Objects{}, fmt.Errorf("list Kubernetes objects: %w", err)
	}
	return o, nil
}
