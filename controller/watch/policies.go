package watch

import (
	"errors"
	"fmt"
	"maps"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

// Policies are where informers get the objects that people write from. All are
// needed: without one, what people forbid would be allowed.
type Policies struct {
	PeerAuthentications   cache.ListerWatcher
	AuthorizationPolicies cache.ListerWatcher
	EgressPolicies        cache.ListerWatcher

	RequestAuthentications cache.ListerWatcher
}

// policies are the informers of these.
type policies struct {
	peerAuthentications   cache.SharedIndexInformer
	authorizationPolicies cache.SharedIndexInformer
	egressPolicies        cache.SharedIndexInformer

	requestAuthentications cache.SharedIndexInformer
}

func newPolicies(from Policies, changed func()) (*policies, error) {
	p := &policies{}
	for _, kind := range []struct {
		source   cache.ListerWatcher
		example  runtime.Object
		informer *cache.SharedIndexInformer
	}{
		{from.PeerAuthentications, &v1alpha1.PeerAuthentication{}, &p.peerAuthentications},
		{from.AuthorizationPolicies, &v1alpha1.AuthorizationPolicy{}, &p.authorizationPolicies},
		{from.EgressPolicies, &v1alpha1.EgressPolicy{}, &p.egressPolicies},
		{from.RequestAuthentications, &v1alpha1.RequestAuthentication{}, &p.requestAuthentications},
	} {
		if kind.source == nil {
			return nil, fmt.Errorf("watch %T: no source", kind.example)
		}
		*kind.informer = cache.NewSharedIndexInformer(kind.source, kind.example, 0, cache.Indexers{})
		if _, err := (*kind.informer).AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { changed() },
			UpdateFunc: func(old, new any) {
				if !samePolicy(old, new) {
					changed()
				}
			},
			DeleteFunc: func(any) { changed() },
		}); err != nil {
			return nil, fmt.Errorf("watch %T: %w", kind.example, err)
		}
	}
	return p, nil
}

// samePolicy tells whether an update changed nothing that policies are made
// from: their status is written by ourselves.
func samePolicy(old, new any) bool {
	a, isObject := old.(metav1.Object)
	b, isObjectToo := new.(metav1.Object)
	return isObject && isObjectToo && a.GetUID() == b.GetUID() && a.GetGeneration() == b.GetGeneration() &&
		maps.Equal(a.GetAnnotations(), b.GetAnnotations())
}

func (p *policies) all() []cache.SharedIndexInformer {
	return []cache.SharedIndexInformer{p.peerAuthentications, p.authorizationPolicies, p.egressPolicies, p.requestAuthentications}
}

// PolicyObjects are all policies of a cluster. They are shared: nobody may
// change them.
type PolicyObjects struct {
	PeerAuthentications   []*v1alpha1.PeerAuthentication
	AuthorizationPolicies []*v1alpha1.AuthorizationPolicy
	EgressPolicies        []*v1alpha1.EgressPolicy

	RequestAuthentications []*v1alpha1.RequestAuthentication
}

// Policies returns what is there now.
func (s *Sources) Policies() (o PolicyObjects, err error) {
	var errs [4]error
	o.PeerAuthentications, errs[0] = list[*v1alpha1.PeerAuthentication](s.policies.peerAuthentications)
	o.AuthorizationPolicies, errs[1] = list[*v1alpha1.AuthorizationPolicy](s.policies.authorizationPolicies)
	o.EgressPolicies, errs[2] = list[*v1alpha1.EgressPolicy](s.policies.egressPolicies)
	o.RequestAuthentications, errs[3] = list[*v1alpha1.RequestAuthentication](s.policies.requestAuthentications)
	return o, errors.Join(errs[:]...)
}

// list what an informer holds, by its type.
func list[T any](informer cache.SharedIndexInformer) (all []T, err error) {
	for _, object := range informer.GetStore().List() {
		typed, ok := object.(T)
		if !ok {
			return nil, errors.New("an informer holds what it is not for")
		}
		all = append(all, typed)
	}
	return all, nil
}
