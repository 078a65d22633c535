package policy

import (
	"context"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	kubewatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/watch"
)

// Sources are where informers get the policies from.
func (c *Client) Sources() watch.Policies {
	return watch.Policies{
		PeerAuthentications:    source(c.stored, "peerauthentications", peerAuthentication),
		AuthorizationPolicies:  source(c.stored, "authorizationpolicies", authorizationPolicy),
		EgressPolicies:         source(c.stored, "egresspolicies", egressPolicy),
		RequestAuthentications: source(c.stored, "requestauthentications", requestAuthentication),
	}
}

// source of one kind. One object that cannot be read does not keep the others from being.
func source(stored dynamic.Interface, plural string, read func(*unstructured.Unstructured) runtime.Object) cache.ListerWatcher {
	resource := stored.Resource(v1alpha1.GroupVersion.WithResource(plural))
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			found, err := resource.List(ctx, options)
			if err != nil {
				return nil, err
			}
			list := &metav1.List{ListMeta: metav1.ListMeta{
				ResourceVersion: found.GetResourceVersion(), Continue: found.GetContinue(), RemainingItemCount: found.GetRemainingItemCount(),
			}}
			for i := range found.Items {
				list.Items = append(list.Items, runtime.RawExtension{Object: read(&found.Items[i])})
			}
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (kubewatch.Interface, error) {
			events, err := resource.Watch(ctx, options)
			if err != nil {
				return nil, err
			}
			return kubewatch.Filter(events, func(e kubewatch.Event) (kubewatch.Event, bool) {
				if object, ok := e.Object.(*unstructured.Unstructured); ok {
					e.Object = read(object)
				}
				return e, true
			}), nil
		},
	}, stored)
}

func peerAuthentication(u *unstructured.Unstructured) runtime.Object {
	o := &v1alpha1.PeerAuthentication{}
	if o.Unread = convert(u, o, &o.Spec); about(o.Unread, "spec.mtls", "spec.portLevelMtls") {
		o.Spec.Selector = nil
	}
	return o
}

func authorizationPolicy(u *unstructured.Unstructured) runtime.Object {
	o := &v1alpha1.AuthorizationPolicy{}
	if o.Unread = convert(u, o, &o.Spec); about(o.Unread, "spec.rules", "spec.provider") {
		o.Spec.Selector, o.Spec.TargetRefs = nil, nil
	}
	return o
}

func egressPolicy(u *unstructured.Unstructured) runtime.Object {
	o := &v1alpha1.EgressPolicy{}
	if o.Unread = convert(u, o, &o.Spec); about(o.Unread, "spec.exceptions") {
		o.Spec.Selector = nil
	}
	return o
}

func requestAuthentication(u *unstructured.Unstructured) runtime.Object {
	o := &v1alpha1.RequestAuthentication{}
	if o.Unread = convert(u, o, &o.Spec); about(o.Unread, "spec.jwtRules") {
		o.Spec.Selector, o.Spec.TargetRefs = nil, nil
	}
	return o
}

// about tells whether what was not read may be about whom a policy is for, and not what it
// does, which the fields named here say: then it is for all of its namespace.
func about(unread []string, does ...string) bool {
	for _, field := range unread {
		known := false
		for _, name := range does {
			rest, ok := strings.CutPrefix(field, name)
			known = known || ok && strings.HasPrefix(rest, "[") || ok && strings.HasPrefix(rest, ".")
		}
		if !known {
			return true
		}
	}
	return false
}

// convert reads an object, whose spec is given besides. It returns what of the spec it could
// not read: fields of another version, or all of it. What a newer version has added may
// take from what the rest allows.
func convert(u *unstructured.Unstructured, into runtime.Object, spec any) (unread []string) {
	converter := runtime.DefaultUnstructuredConverter
	if err := converter.FromUnstructured(u.Object, into); err != nil {
		// Who it is can be read in any case.
		identity := map[string]any{"apiVersion": u.GetAPIVersion(), "kind": u.GetKind(), "metadata": u.Object["metadata"]}
		if err := converter.FromUnstructured(identity, into); err != nil {
			into.(metav1.Object).SetName(u.GetName())
			into.(metav1.Object).SetNamespace(u.GetNamespace())
			into.(metav1.Object).SetResourceVersion(u.GetResourceVersion())
		}
		return []string{fmt.Sprintf("spec (%v)", err)}
	}
	stored, ok := u.Object["spec"].(map[string]any)
	if !ok {
		return nil // there is none, of a bookmark say
	}
	err := converter.FromUnstructuredWithValidation(stored, spec, true)
	strict, ok := runtime.AsStrictDecodingError(err)
	if !ok {
		return nil // it was read above
	}
	for _, err := range strict.Errors() {
		// It says: unknown field "rules[0].name"
		name := err.Error()
		if _, quoted, ok := strings.Cut(name, `"`); ok {
			name = strings.TrimSuffix(quoted, `"`)
		}
		unread = append(unread, "spec."+name)
	}
	return unread
}
