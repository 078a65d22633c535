package check

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/cli/kube"
)

func clusterOf(objects ...runtime.Object) *kube.Cluster {
	return &kube.Cluster{Typed: fake.NewClientset(objects...)}
}

func namespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

func pod(ns, name string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: labels}}
}

// wantFindings compares findings with the words that each must contain.
func wantFindings(t *testing.T, findings []Finding, err error, want ...string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if len(findings) != len(want) {
		t.Fatalf("%d findings, want %d: %+v", len(findings), len(want), findings)
	}
	for i, words := range want {
		text := string(findings[i].Level) + " " + findings[i].Object + " " + findings[i].Reason + " " + findings[i].Next
		for _, word := range strings.Split(words, "|") {
			if !strings.Contains(text, word) {
				t.Errorf("finding %d %q does not say %q", i, text, word)
			}
		}
	}
}

func TestKernelsOlderThanTheRedirectionNeeds(t *testing.T) {
	for release, old := range map[string]bool{
		"6.18.44": false, "5.15.0-91-generic": false, "5.14.0-362.el9.x86_64": true, "4.18.0-513.el8": true, "10.1": false,
	} {
		got, err := kernelTooOld(release)
		if err != nil || got != old {
			t.Errorf("kernel %s too old: %v (%v), want %v", release, got, err, old)
		}
	}
	if _, err := kernelTooOld("unknown"); err == nil {
		t.Error("a release without a number passes")
	}
}

func TestUnknownLabelValuesAreNamed(t *testing.T) {
	findings, err := askLabels(context.Background(), clusterOf(
		namespace("right", map[string]string{modeLabel: "ambient"}),
		namespace("typo", map[string]string{modeLabel: "ambiant"}),
		pod("right", "out", map[string]string{modeLabel: "none"}),
		pod("right", "odd", map[string]string{modeLabel: "yes"}),
	))
	wantFindings(t, findings, err, `error|Namespace typo|"ambiant"|ambient or none`, `error|Pod right/odd|"yes"`)
}

func TestOtherMeshesMatterWhereAPodIsEnrolled(t *testing.T) {
	findings, err := askOtherMeshes(context.Background(), clusterOf(
		namespace("both", map[string]string{modeLabel: "ambient", "istio.io/dataplane-mode": "ambient"}),
		namespace("theirs", map[string]string{"istio-injection": "enabled"}),
	))
	wantFindings(t, findings, err, "error|Namespace both|Istio (ambient)")
}

func TestTheControllerThatServesIsTheOneThatLeads(t *testing.T) {
	deployment := func(available int32) *appsv1.Deployment {
		two := int32(2)
		return &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "controller"},
			Spec:       appsv1.DeploymentSpec{Replicas: &two, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "controller"}}},
			Status:     appsv1.DeploymentStatus{Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: available},
		}
	}
	lease := func(holder string, age time.Duration) *coordinationv1.Lease {
		renewed := metav1.NewMicroTime(time.Now().Add(-age))
		return &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "controller"},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &renewed},
		}
	}
	for name, c := range map[string]struct {
		objects []runtime.Object
		want    []string
	}{
		"both, one leads":          {[]runtime.Object{deployment(2), lease("a", time.Second)}, nil},
		"one, and it leads":        {[]runtime.Object{deployment(1), lease("a", time.Second)}, []string{"warning|1 of 2|no other replica"}},
		"none":                     {[]runtime.Object{deployment(0), lease("a", time.Second)}, []string{"error|0 of 2"}},
		"both, nobody leads":       {[]runtime.Object{deployment(2), lease("", time.Second)}, []string{"error|no replica leads"}},
		"both, nobody for an hour": {[]runtime.Object{deployment(2), lease("a", time.Hour)}, []string{"error|a was the last"}},
		"both, nobody ever":        {[]runtime.Object{deployment(2)}, []string{"error|ever led"}},
		"not installed":            {nil, []string{"error|not installed"}},
	} {
		t.Run(name, func(t *testing.T) {
			findings, err := askController(t.Context(), clusterOf(c.objects...))
			wantFindings(t, findings, err, c.want...)
		})
	}
}

// What was is told apart from what is: the node is sound, its pods are not.
func TestPodsThatRanUncapturedAreNamed(t *testing.T) {
	now := metav1.NewMicroTime(time.Now())
	lease := func(node, problems string) *coordinationv1.Lease {
		return &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "ztunnel-" + node, Annotations: map[string]string{problemsAnnotation: problems}},
			Spec:       coordinationv1.LeaseSpec{RenewTime: &now},
		}
	}
	node := func(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	cluster := clusterOf(node("n1"), node("n2"),
		lease("n1", "StartedUngated: pod shop/cart ran uncaptured from noon to night\nBPFFSMissing: mount it"), lease("n2", ""))
	findings, err := askUngated(t.Context(), cluster)
	wantFindings(t, findings, err, "warning|Node n1|pod shop/cart|restart")
	findings, err = askHeartbeats(t.Context(), cluster)
	wantFindings(t, findings, err, "error|Node n1|BPFFSMissing")
}

// A clock that is wrong is a finding of its own.
func TestClocksThatDisagreeAreNamed(t *testing.T) {
	now := metav1.NewMicroTime(time.Now())
	cluster := clusterOf(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "ztunnel-n1", Annotations: map[string]string{
			problemsAnnotation: "ClockSkewed: the node's clock is 3m0s behind the controller's",
		}},
		Spec: coordinationv1.LeaseSpec{RenewTime: &now},
	})
	findings, err := askClocks(t.Context(), cluster)
	wantFindings(t, findings, err, "error|Node n1|3m0s behind|controller's node")
	findings, err = askHeartbeats(t.Context(), cluster)
	wantFindings(t, findings, err)
}

func TestNetworkPoliciesThatForgetTheTunnel(t *testing.T) {
	tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
	port := func(protocol *corev1.Protocol, first int, last int32) networkingv1.NetworkPolicyPort {
		p := networkingv1.NetworkPolicyPort{Protocol: protocol}
		if first != 0 {
			value := intstr.FromInt(first)
			p.Port = &value
		}
		if last != 0 {
			p.EndPort = &last
		}
		return p
	}
	rule := func(ports ...networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicyIngressRule {
		return networkingv1.NetworkPolicyIngressRule{Ports: ports}
	}
	egress := networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, Ingress: []networkingv1.NetworkPolicyIngressRule{rule(port(&tcp, 80, 0))}}
	for name, c := range map[string]struct {
		spec    networkingv1.NetworkPolicySpec
		forgets bool
	}{
		"only the application's port":   {networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule(port(&tcp, 8080, 0))}}, true},
		"protocol left out means TCP":   {networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule(port(nil, 8080, 0))}}, true},
		"the tunnel's port beside it":   {networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule(port(&tcp, 8080, 0), port(&tcp, 15008, 0))}}, false},
		"a range that holds it":         {networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule(port(&tcp, 15000, 15100))}}, false},
		"the right port, in UDP":        {networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule(port(&udp, 15008, 0))}}, true},
		"all ports of TCP":              {networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule(port(&tcp, 0, 0))}}, false},
		"all ports":                     {networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule()}}, false},
		"denies everything, on purpose": {networkingv1.NetworkPolicySpec{}, false},
		"is about egress":               {egress, false},
	} {
		if got := forgetsTunnel(&networkingv1.NetworkPolicy{Spec: c.spec}); got != c.forgets {
			t.Errorf("%s: forgets %v, want %v", name, got, c.forgets)
		}
	}
	findings, err := askNetworkPolicies(context.Background(), clusterOf(
		namespace("shop", map[string]string{modeLabel: "ambient"}), namespace("other", nil),
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule(port(&tcp, 8080, 0))}}},
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "web"}, Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{rule(port(&tcp, 8080, 0))}}},
	))
	wantFindings(t, findings, err, "error|NetworkPolicy shop/web|15008|spec.ingress")
}

func TestTheRootOfTrust(t *testing.T) {
	certificate, key := root(t, time.Now().Add(1000*24*time.Hour))
	another, _ := root(t, time.Now().Add(1000*24*time.Hour))
	ending, endingKey := root(t, time.Now().Add(24*time.Hour))
	secret := func(crt, key string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "ambit-ca"}, Data: map[string][]byte{"tls.crt": []byte(crt), "tls.key": []byte(key)}}
	}
	bundle := func(pem string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "ambit-ca-root"}, Data: map[string]string{"root-cert.pem": pem}}
	}
	for name, c := range map[string]struct {
		objects []runtime.Object
		want    []string
	}{
		"both, and they agree":     {[]runtime.Object{secret(certificate, key), bundle(certificate)}, nil},
		"nothing at all":           {nil, []string{"error|Secret ambit-system/ambit-ca|ambit install"}},
		"the Secret is lost":       {[]runtime.Object{bundle(certificate)}, []string{"error|lost|backup"}},
		"the ConfigMap is lost":    {[]runtime.Object{secret(certificate, key)}, []string{"error|ConfigMap ambit-system/ambit-ca-root"}},
		"they disagree":            {[]runtime.Object{secret(certificate, key), bundle(another)}, []string{"error|root-cert.pem"}},
		"the Secret is garbled":    {[]runtime.Object{secret(certificate, "no key"), bundle(certificate)}, []string{"error|tls.key|never overwrites"}},
		"the root is about to end": {[]runtime.Object{secret(ending, endingKey), bundle(ending)}, []string{"warning|ends on"}},
	} {
		t.Run(name, func(t *testing.T) {
			findings, err := askRoot(context.Background(), clusterOf(c.objects...))
			wantFindings(t, findings, err, c.want...)
		})
	}
}

func root(t *testing.T, end time.Time) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: end, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, body []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: body}))
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", pkcs8)
}

func TestOneErrorFailsTheCheck(t *testing.T) {
	if err := Verdict([]Finding{{Level: Pass}, {Level: Warning}}); err != nil {
		t.Errorf("warnings fail the check: %v", err)
	}
	if err := Verdict([]Finding{{Level: Pass}, {Level: Error}}); !errors.Is(err, ErrFailed) {
		t.Errorf("an error passes: %v", err)
	}
}

func TestOlderConnectionsAreCountedByNamespace(t *testing.T) {
	workload := func(namespace string, n int32) (w v1alpha1.Workload) {
		w.Namespace, w.Status.OlderConnections = namespace, n
		return w
	}
	if findings := older([]v1alpha1.Workload{workload("shop", 0)}); len(findings) != 0 {
		t.Errorf("without any: %+v", findings)
	}
	findings := older([]v1alpha1.Workload{workload("shop", 3), workload("bank", 1), workload("shop", 0), workload("shop", 4)})
	if len(findings) != 2 || findings[1].Object != "Namespace shop" || findings[1].Level != Warning ||
		!strings.Contains(findings[1].Reason, "connections of 2 of its pods") || !strings.Contains(findings[1].Reason, ": 7.") ||
		!strings.Contains(findings[1].Next, "ambit workloads -n shop -o older") {
		t.Errorf("%+v", findings)
	}
}
