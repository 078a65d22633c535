package translate

import (
	"math/rand/v2"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

var unread = []string{"spec.rules[0].newer"}

func shopMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "shop", Name: name}
}

// Whatever the rest of a policy says: with a field that is not known it lets nothing in.
func TestAPolicyThatIsNotReadWholeDenies(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for range 1000 {
		object := randomPolicy(random)
		object.Unread = unread
		allowed := decider(t, object)
		for range 20 {
			if c := randomConnection(random); allowed(c) {
				t.Fatalf("%+v is let in", c)
			}
		}
		r := indexRequests(Input{Config: config, AuthorizationPolicies: []*v1alpha1.AuthorizationPolicy{object}})
		if p := r.policies["shop/p"]; p.GetAction() != mesh.RequestPolicy_DENY || p.GetInvalid() == "" {
			t.Fatalf("waypoints are told %v", p)
		}
	}
}

// What is more specific, or older, has no say beside what may have been as specific.
func TestModesAndEgressThatAreNotReadWhole(t *testing.T) {
	web := &v1alpha1.WorkloadSelector{MatchLabels: map[string]v1alpha1.LabelValue{"app": "web"}}
	pods := &targets{system: "ambit-system"}
	p := &pod{Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}}}}

	modes := &modeSources{system: pods.system, byNamespace: map[string][]*peerAuth{"shop": {
		readPeerAuthentication(&v1alpha1.PeerAuthentication{ObjectMeta: shopMeta("open"), Spec: v1alpha1.PeerAuthenticationSpec{
			Selector: web, MTLS: &v1alpha1.PeerMTLS{Mode: v1alpha1.MutualTLSDisable},
		}}, pods),
		readPeerAuthentication(&v1alpha1.PeerAuthentication{ObjectMeta: shopMeta("unread"), Unread: unread, Spec: v1alpha1.PeerAuthenticationSpec{
			MTLS: &v1alpha1.PeerMTLS{Mode: v1alpha1.MutualTLSPermissive}, PortLevelMTLS: map[string]v1alpha1.PeerMTLS{"80": {Mode: v1alpha1.MutualTLSDisable}},
		}}, pods),
	}}}
	inForce := decide(modes.of(p), func(_, _ *peerAuth) {})
	if ports, except := inForce.refused(); !except || len(ports) > 0 {
		t.Errorf("plaintext is refused at %v, except %t; want everywhere", ports, except)
	}
	if !modes.mayBeStrict("shop") {
		t.Error("a pod of the namespace that nobody knows yet is taken for one that is not strict")
	}

	sources := &denialSources{system: pods.system, byNamespace: map[string][]*egress{}}
	for _, object := range []*v1alpha1.EgressPolicy{
		{ObjectMeta: shopMeta("open"), Spec: v1alpha1.EgressPolicySpec{Selector: web, Action: v1alpha1.EgressAllow}},
		{ObjectMeta: shopMeta("unread"), Unread: unread, Spec: v1alpha1.EgressPolicySpec{
			Action: v1alpha1.EgressAllow, Exceptions: []v1alpha1.EgressException{{CIDR: "192.0.2.0/24"}},
		}},
	} {
		e := &egress{outcome: newPolicy(EgressPolicy, object), selector: object.Spec.Selector, level: pods.level("shop", object.Spec.Selector), lost: map[string]int{}}
		message := e.read(object)
		e.deny = message.Action == mesh.EgressPolicy_DENY
		sources.byNamespace["shop"] = append(sources.byNamespace["shop"], e)
		if object.Name == "unread" && (!e.deny || len(message.GetExceptions()) > 0) {
			t.Errorf("it says %v", message)
		}
	}
	if !sources.mayDeny("shop") {
		t.Error("a pod of the namespace that nobody knows yet is taken for one that may leave the mesh")
	}
}

func TestTokensOfRulesThatAreNotReadWhole(t *testing.T) {
	one := readAuthentication(&v1alpha1.RequestAuthentication{ObjectMeta: shopMeta("unread"), Unread: unread, Spec: v1alpha1.RequestAuthenticationSpec{
		JWTRules: []v1alpha1.JWTRule{{Issuer: "issuer", JWKS: `{"keys":[]}`}},
	}}, "ambit-system")
	if len(one.message.GetRules()) > 0 || len(one.outcome.Problems) != 1 || one.outcome.Problems[0].Field != unread[0] {
		t.Errorf("it vouches by %v, %+v", one.message, one.outcome.Problems)
	}
}
