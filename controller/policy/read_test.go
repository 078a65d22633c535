package policy

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

func stored(t *testing.T, kind, name, spec string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": kind,
		"metadata": map[string]any{"namespace": "shop", "name": name, "generation": int64(3)},
		"status":   map[string]any{"newer": "is nobody's but the controller's"},
	}}
	var content any
	if err := yaml.Unmarshal([]byte(spec), &content); err != nil {
		t.Fatal(err)
	}
	u.Object["spec"] = content
	return u
}

func TestFieldsOfNewerVersions(t *testing.T) {
	for _, c := range []struct {
		name, kind, spec string
		unread           []string
		selects          bool // its selector, or targets, count
	}{
		{"known", "AuthorizationPolicy", "{selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {namespaces: [a]}}]}]}", nil, true},
		{"a rule's", "AuthorizationPolicy", "{selector: {matchLabels: {app: web}}, rules: [{from: [{source: {planets: [a]}}]}]}", []string{"spec.rules[0].from[0].source.planets"}, true},
		{"about whom", "AuthorizationPolicy", "{selector: {matchLabels: {app: web}, matchExpressions: []}}", []string{"spec.selector.matchExpressions"}, false},
		{"of the whole", "AuthorizationPolicy", "{targetRefs: [{kind: Service, name: web}], rulesets: []}", []string{"spec.rulesets"}, false},
		{"both", "AuthorizationPolicy", "{selector: {matchLabels: {app: web}}, priority: 1, rules: [{weight: 1}]}", []string{"spec.priority", "spec.rules[0].weight"}, false},
		{"known", "PeerAuthentication", "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}", nil, true},
		{"a mode's", "PeerAuthentication", "{selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE, since: now}}", []string{"spec.mtls.since"}, true},
		{"a port's", "PeerAuthentication", "{selector: {matchLabels: {app: web}}, portLevelMtls: {\"80\": {mode: DISABLE, since: now}}}", []string{"spec.portLevelMtls.since"}, true},
		{"like a known one", "PeerAuthentication", "{selector: {matchLabels: {app: web}}, mtlsAlso: {mode: STRICT}}", []string{"spec.mtlsAlso"}, false},
		{"an exception's", "EgressPolicy", "{selector: {matchLabels: {app: web}}, action: Deny, exceptions: [{cidr: 192.0.2.0/24, until: now}]}", []string{"spec.exceptions[0].until"}, true},
		{"about whom", "EgressPolicy", "{selector: {matchLabels: {app: web}}, action: Deny, namespaces: [a]}", []string{"spec.namespaces"}, false},
		{"a rule's", "RequestAuthentication", "{selector: {matchLabels: {app: web}}, jwtRules: [{issuer: a, jwks: b, binding: c}]}", []string{"spec.jwtRules[0].binding"}, true},
		{"of another type", "AuthorizationPolicy", "{selector: {matchLabels: {app: web}}, rules: none}", []string{"spec (…)"}, false},
		{"of another type", "PeerAuthentication", "{selector: [web], mtls: {mode: PERMISSIVE}}", []string{"spec (…)"}, false},
	} {
		t.Run(c.kind+" "+c.name, func(t *testing.T) {
			u := stored(t, c.kind, "p", c.spec)
			var object interface {
				metav1.Object
				runtime.Object
			}
			var unread []string
			selects := false
			switch c.kind {
			case "AuthorizationPolicy":
				o := authorizationPolicy(u).(*v1alpha1.AuthorizationPolicy)
				object, unread, selects = o, o.Unread, o.Spec.Selector != nil || o.Spec.TargetRefs != nil
			case "PeerAuthentication":
				o := peerAuthentication(u).(*v1alpha1.PeerAuthentication)
				object, unread, selects = o, o.Unread, o.Spec.Selector != nil
			case "EgressPolicy":
				o := egressPolicy(u).(*v1alpha1.EgressPolicy)
				object, unread, selects = o, o.Unread, o.Spec.Selector != nil
			case "RequestAuthentication":
				o := requestAuthentication(u).(*v1alpha1.RequestAuthentication)
				object, unread, selects = o, o.Unread, o.Spec.Selector != nil
			}
			if len(c.unread) == 1 && c.unread[0] == "spec (…)" {
				if len(unread) != 1 {
					t.Fatalf("unread %q", unread)
				}
			} else if slices.Sort(unread); !slices.Equal(unread, c.unread) {
				t.Errorf("unread %q, want %q", unread, c.unread)
			}
			if selects != c.selects {
				t.Errorf("it picks pods: %t, want %t", selects, c.selects)
			}
			if object.GetNamespace() != "shop" || object.GetName() != "p" || object.GetGeneration() != 3 {
				t.Errorf("it is %s/%s, generation %d", object.GetNamespace(), object.GetName(), object.GetGeneration())
			}
		})
	}
}

// An informer gets all of them, those that cannot be read too, and what becomes of them.
func TestInformersGetWhatCannotBeRead(t *testing.T) {
	scheme := runtime.NewScheme()
	resource := v1alpha1.GroupVersion.WithResource("authorizationpolicies")
	good, bad := stored(t, "AuthorizationPolicy", "good", "{}"), stored(t, "AuthorizationPolicy", "bad", "{rules: none}")
	client := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(scheme, map[schema.GroupVersionResource]string{resource: "AuthorizationPolicyList"}, good, bad)
	informer := cache.NewSharedIndexInformer(source(client, "authorizationpolicies", authorizationPolicy), &v1alpha1.AuthorizationPolicy{}, 0, cache.Indexers{})
	done := make(chan struct{})
	defer close(done)
	go informer.Run(done)
	unread := func(name string, want bool) func() bool {
		return func() bool {
			object, ok, _ := informer.GetStore().GetByKey("shop/" + name)
			return ok && (len(object.(*v1alpha1.AuthorizationPolicy).Unread) > 0) == want
		}
	}
	await(t, "good", unread("good", false))
	await(t, "bad", unread("bad", true))
	time.Sleep(100 * time.Millisecond) // it watches
	if _, err := client.Resource(resource).Namespace("shop").Update(t.Context(), stored(t, "AuthorizationPolicy", "good", "{newer: 1}"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	await(t, "good, changed", unread("good", true))
}
