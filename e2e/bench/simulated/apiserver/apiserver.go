// Package apiserver is a Kubernetes API server that keeps its objects in memory:
// as much of one as a mesh's own components ask for.
//
//	apiserver.go  objects, versions, what happened
//	http.go       requests: get, list, create, update, apply, delete, token reviews
//	watch.go      streams of what happens
//	codec.go      JSON and protobuf, as the client wishes
//
// Who runs the server puts objects in directly, with [Server.Put], as users,
// kubelets and other controllers would; clients see it over HTTP.
//
// Invariants: versions grow with every change of any object; a watch that
// begins at a list's version misses nothing, or is told that it is too old;
// only the tokens that were added are let in.
//
// There is no admission, no defaulting, no validation and no RBAC: tests on a
// real cluster are for those.
package apiserver

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

// historyLength is how many changes a watch may be behind; older ones are
// forgotten, and whoever needs them lists anew.
const historyLength = 10_000

// Server is an API server. Its methods may be called concurrently.
type Server struct {
	codec codec

	mu      sync.Mutex
	version int
	kinds   map[string]*kind // by resource
	tokens  map[string]Subject
	history []event
	// forgotten is the version of the latest change that is not in history.
	forgotten int
	changed   chan struct{} // closed and replaced with every change
}

// Subject is who bears a token: a service account, in a pod on a node.
type Subject struct {
	Namespace, ServiceAccount string
	PodName                   string
	PodUID                    types.UID
	Node                      string
	// Audience the token is for; empty for the API server itself.
	Audience string
}

// kind is one type of objects.
type kind struct {
	schema.GroupVersionKind
	resource string
	objects  map[string]runtime.Object // by namespace/name
}

// event is a change of one object. Objects in it are not changed any more.
type event struct {
	version  int
	resource string
	old, now runtime.Object // nil before it was made, and after it is gone
}

// New returns a server without objects.
func New() *Server {
	s := &Server{
		codec:   newCodec(),
		kinds:   make(map[string]*kind),
		tokens:  make(map[string]Subject),
		changed: make(chan struct{}),
		version: 1,
	}
	for resource, gvk := range map[string]schema.GroupVersionKind{
		"pods":           corev1.SchemeGroupVersion.WithKind("Pod"),
		"namespaces":     corev1.SchemeGroupVersion.WithKind("Namespace"),
		"nodes":          corev1.SchemeGroupVersion.WithKind("Node"),
		"services":       corev1.SchemeGroupVersion.WithKind("Service"),
		"configmaps":     corev1.SchemeGroupVersion.WithKind("ConfigMap"),
		"secrets":        corev1.SchemeGroupVersion.WithKind("Secret"),
		"endpointslices": discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"),
		"leases":         coordinationv1.SchemeGroupVersion.WithKind("Lease"),
		"workloads":      v1alpha1.GroupVersion.WithKind("Workload"),

		"peerauthentications":   v1alpha1.GroupVersion.WithKind("PeerAuthentication"),
		"authorizationpolicies": v1alpha1.GroupVersion.WithKind("AuthorizationPolicy"),
		"egresspolicies":        v1alpha1.GroupVersion.WithKind("EgressPolicy"),

		"requestauthentications": v1alpha1.GroupVersion.WithKind("RequestAuthentication"),
	} {
		s.kinds[resource] = &kind{GroupVersionKind: gvk, resource: resource, objects: make(map[string]runtime.Object)}
	}
	return s
}

// AddToken lets in whoever bears a token.
func (s *Server) AddToken(token string, subject Subject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[token] = subject
}

// Put makes objects what they are given as, whether they are there already or not.
func (s *Server) Put(objects ...runtime.Object) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, object := range objects {
		k, err := s.kindOf(object)
		if err != nil {
			return err
		}
		s.storeLocked(k, object.DeepCopyObject())
	}
	return nil
}

// Delete removes an object; one that is not there is removed already.
func (s *Server) Delete(object runtime.Object) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.kindOf(object)
	if err != nil {
		return err
	}
	s.removeLocked(k, keyOf(object))
	return nil
}

// Get copies an object into one of its type that has its name, and tells
// whether there is one.
func Get[O interface {
	runtime.Object
	DeepCopyInto(O)
}](s *Server, namespace, name string, into O) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, err := s.kindOf(into)
	if err != nil {
		return false
	}
	found, ok := k.objects[key(namespace, name)].(O)
	if ok {
		found.DeepCopyInto(into)
	}
	return ok
}

func (s *Server) kindOf(object runtime.Object) (*kind, error) {
	gvks, _, err := s.codec.scheme.ObjectKinds(object)
	if err != nil {
		return nil, fmt.Errorf("find kind of %T: %w", object, err)
	}
	for _, k := range s.kinds {
		if slices.Contains(gvks, k.GroupVersionKind) {
			return k, nil
		}
	}
	return nil, fmt.Errorf("objects of kind %s are not kept here", gvks[0])
}

// storeLocked takes over an object, which must not be changed any more.
func (s *Server) storeLocked(k *kind, object runtime.Object) {
	s.version++
	accessor := accessorOf(object)
	accessor.SetResourceVersion(strconv.Itoa(s.version))
	old := k.objects[keyOf(object)]
	if old != nil {
		accessor.SetUID(accessorOf(old).GetUID())
		accessor.SetCreationTimestamp(accessorOf(old).GetCreationTimestamp())
	}
	if accessor.GetUID() == "" {
		accessor.SetUID(types.UID(fmt.Sprintf("%08x-0000-4000-8000-%012x", s.version, s.version)))
	}
	if accessor.GetCreationTimestamp().Time.IsZero() {
		accessor.SetCreationTimestamp(metav1.NewTime(time.Now().Truncate(time.Second)))
	}
	object.GetObjectKind().SetGroupVersionKind(k.GroupVersionKind)
	k.objects[keyOf(object)] = object
	s.noteLocked(event{s.version, k.resource, old, object})
}

func (s *Server) removeLocked(k *kind, key string) {
	old, ok := k.objects[key]
	if !ok {
		return
	}
	s.version++
	delete(k.objects, key)
	s.noteLocked(event{s.version, k.resource, old, nil})
}

func (s *Server) noteLocked(e event) {
	s.history = append(s.history, e)
	if len(s.history) > 2*historyLength {
		s.forgotten = s.history[len(s.history)-historyLength-1].version
		s.history = slices.Clone(s.history[len(s.history)-historyLength:])
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// sortedLocked returns a kind's objects in one namespace, or in all.
func (k *kind) sortedLocked(namespace string) []runtime.Object {
	var objects []runtime.Object
	for _, object := range k.objects {
		if namespace == "" || accessorOf(object).GetNamespace() == namespace {
			objects = append(objects, object)
		}
	}
	slices.SortFunc(objects, func(a, b runtime.Object) int { return strings.Compare(keyOf(a), keyOf(b)) })
	return objects
}

func key(namespace, name string) string { return namespace + "/" + name }

func keyOf(object runtime.Object) string {
	accessor := accessorOf(object)
	return key(accessor.GetNamespace(), accessor.GetName())
}

// accessorOf returns the metadata of an object of our kinds, all of which have some.
func accessorOf(object runtime.Object) metav1.Object {
	accessor, err := meta.Accessor(object)
	if err != nil {
		panic(err)
	}
	return accessor
}
