package check

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/cli/kube"
)

const modeLabel = "ambit.mesh/dataplane-mode"

func askLabels(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	var findings []Finding
	say := func(object, value string) {
		findings = append(findings, Finding{
			Level: Error, Object: object, Reason: fmt.Sprintf("label %s has the unknown value %q, so it is not captured", modeLabel, value),
			Next: "set it to ambient or none, or remove it",
		})
	}
	unknown := metav1.ListOptions{LabelSelector: modeLabel + "," + modeLabel + " notin (ambient,none)"}
	namespaces, err := cluster.Typed.CoreV1().Namespaces().List(ctx, unknown)
	if err != nil {
		return nil, err
	}
	for _, n := range namespaces.Items {
		say("Namespace "+n.Name, n.Labels[modeLabel])
	}
	pods, err := cluster.Typed.CoreV1().Pods("").List(ctx, unknown)
	if err != nil {
		return nil, err
	}
	for _, p := range pods.Items {
		say("Pod "+p.Namespace+"/"+p.Name, p.Labels[modeLabel])
	}
	return findings, nil
}

// otherMeshes are the labels by which other meshes take a namespace or pod.
var otherMeshes = []struct{ mesh, selector string }{
	{"Istio (ambient)", "istio.io/dataplane-mode=ambient"},
	{"Istio (sidecar)", "istio-injection=enabled"},
	{"Istio (sidecar)", "istio.io/rev"},
	{"Kmesh", "istio.io/dataplane-mode=Kmesh"},
	{"Linkerd", "linkerd.io/inject=enabled"},
	{"Consul", "consul.hashicorp.com/connect-inject=true"},
	{"Kuma", "kuma.io/sidecar-injection=enabled"},
}

func askOtherMeshes(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	enrolled, err := enrolledNamespaces(ctx, cluster)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	say := func(object, namespace, mesh, selector string) {
		if !enrolled[namespace] {
			return
		}
		findings = append(findings, Finding{
			Level: Error, Object: object, Reason: fmt.Sprintf("it is enrolled, and %s takes it too by label %s: two meshes would redirect the same connections", mesh, selector),
			Next: "remove one of the two labels",
		})
	}
	for _, other := range otherMeshes {
		options := metav1.ListOptions{LabelSelector: other.selector}
		namespaces, err := cluster.Typed.CoreV1().Namespaces().List(ctx, options)
		if err != nil {
			return nil, err
		}
		for _, n := range namespaces.Items {
			say("Namespace "+n.Name, n.Name, other.mesh, other.selector)
		}
		pods, err := cluster.Typed.CoreV1().Pods("").List(ctx, options)
		if err != nil {
			return nil, err
		}
		for _, p := range pods.Items {
			say("Pod "+p.Namespace+"/"+p.Name, p.Namespace, other.mesh, other.selector)
		}
	}
	return findings, nil
}

// enrolledNamespaces are those labelled, and those with a pod labelled itself.
func enrolledNamespaces(ctx context.Context, cluster *kube.Cluster) (map[string]bool, error) {
	options := metav1.ListOptions{LabelSelector: modeLabel + "=ambient"}
	namespaces, err := cluster.Typed.CoreV1().Namespaces().List(ctx, options)
	if err != nil {
		return nil, err
	}
	enrolled := map[string]bool{}
	for _, n := range namespaces.Items {
		enrolled[n.Name] = true
	}
	pods, err := cluster.Typed.CoreV1().Pods("").List(ctx, options)
	if err != nil {
		return nil, err
	}
	for _, p := range pods.Items {
		enrolled[p.Namespace] = true
	}
	return enrolled, nil
}
