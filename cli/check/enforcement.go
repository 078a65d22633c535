package check

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/cli/kube"
)

// A policy has so long to be looked at, and to be in force on every node.
const policyPatience = 30 * time.Second

// policyKinds are the kinds of policies, by the name that kubectl needs: other
// meshes serve some of the same.
var policyKinds = []struct{ kind, plural string }{
	{"PeerAuthentication", "peerauthentications"},
	{"AuthorizationPolicy", "authorizationpolicies"},
	{"EgressPolicy", "egresspolicies"},
	{"RequestAuthentication", "requestauthentications"},
}

// policyObject is what all kinds have in common.
type policyObject struct {
	metav1.ObjectMeta `json:"metadata"`
	Status            v1alpha1.PolicyStatus `json:"status"`
}

// askEnforcement finds policies that are not in force, or not as they are written.
func askEnforcement(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	var findings []Finding
	for _, k := range policyKinds {
		list, err := cluster.Dynamic.Resource(v1alpha1.GroupVersion.WithResource(k.plural)).List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) {
			findings = append(findings, Finding{
				Level: Error, Reason: "the cluster serves no " + k.plural + ".ambit.mesh: " + notInstalled, Next: "ambit install",
			})
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list %s.ambit.mesh: %w", k.plural, err)
		}
		for i := range list.Items {
			found, err := judge(k.kind, k.plural, &list.Items[i], time.Now())
			if err != nil {
				return nil, err
			}
			findings = append(findings, found...)
		}
	}
	return findings, nil
}

// judge one policy by its status.
func judge(kind, plural string, object *unstructured.Unstructured, now time.Time) (findings []Finding, err error) {
	var p policyObject
	if err := decodeObject(object, &p); err != nil {
		return nil, err
	}
	find := func(level Level, reason, next string) {
		findings = append(findings, Finding{Level: level, Object: kind + " " + p.Namespace + "/" + p.Name, Reason: reason, Next: next})
	}
	describe := "kubectl -n " + p.Namespace + " describe " + plural + ".ambit.mesh " + p.Name
	accepted := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionAccepted)
	inForce := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionInForce)
	if p.Status.ObservedGeneration < p.Generation || accepted == nil || inForce == nil {
		if now.Sub(p.CreationTimestamp.Time) > policyPatience {
			find(Error, "no controller has said anything of its latest version", "kubectl -n ambit-system logs deployment/controller")
		}
		return findings, nil
	}
	switch {
	case accepted.Status != metav1.ConditionTrue && accepted.Reason == "Invalid":
		find(Error, "the stricter reading is in force: "+accepted.Message, "mend the field that is named")
	case accepted.Status != metav1.ConditionTrue:
		find(Warning, accepted.Reason+": "+accepted.Message, describe)
	case accepted.Reason == "NoRules", accepted.Reason == "PartlyOverridden":
		find(Warning, accepted.Reason+": "+accepted.Message, describe)
	}
	switch {
	case inForce.Status == metav1.ConditionTrue:
	case inForce.Reason == "Refused":
		find(Error, "not in force everywhere: "+inForce.Message, describe)
	case now.Sub(inForce.LastTransitionTime.Time) > policyPatience:
		find(Error, "not in force everywhere: "+inForce.Message, "kubectl -n ambit-system get pods -o wide: a node that is awaited has no ztunnel, or one that hears no controller")
	}
	return findings, nil
}

func decodeObject(object *unstructured.Unstructured, into any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, into); err != nil {
		return fmt.Errorf("decode %s %s/%s: %w", object.GetKind(), object.GetNamespace(), object.GetName(), err)
	}
	return nil
}
