package check

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/workloads"
)

// askAlone names the nodes where pods that are to be captured run, and no ztunnel does that would: what says nothing about it is
// the DaemonSet, for it counts the nodes that it may be on.
func askAlone(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	list, err := workloads.List(ctx, cluster, "", time.Now())
	if err != nil {
		return nil, err
	}
	byNode := map[string][]string{}
	for _, w := range list {
		captured := w.Status.State == v1alpha1.StateCaptured || w.Status.State == v1alpha1.StateNotEnrolled || w.Status.Protocol == v1alpha1.ProtocolHBONE
		if w.Spec.Node != "" && !captured {
			byNode[w.Spec.Node] = append(byNode[w.Spec.Node], w.Namespace+"/"+w.Name)
		}
	}
	if len(byNode) == 0 {
		return nil, nil
	}
	set, err := cluster.Typed.AppsV1().DaemonSets(install.Namespace).Get(ctx, "ztunnel", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil // AMB004 says so
	}
	if err != nil {
		return nil, err
	}
	pods, err := cluster.Typed.CoreV1().Pods(install.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(set.Spec.Selector)})
	if err != nil {
		return nil, err
	}
	return alone(ctx, cluster, set, pods.Items, byNode)
}

func alone(ctx context.Context, cluster *kube.Cluster, set *appsv1.DaemonSet, ztunnels []corev1.Pod, byNode map[string][]string) (findings []Finding, err error) {
	for _, name := range slices.Sorted(maps.Keys(byNode)) {
		why, next := "", ""
		if there := ofNode(ztunnels, name); len(there) > 0 {
			if slices.ContainsFunc(there, ready) {
				continue // what it says of them itself AMB011 tells
			}
			why, next = notReady(there[0]), "kubectl -n ambit-system describe pod "+there[0].Name
		} else {
			node, err := cluster.Typed.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				continue // its pods go with it
			}
			if err != nil {
				return nil, err
			}
			why, next = notThere(set, node)
		}
		pods := byNode[name]
		slices.Sort(pods)
		findings = append(findings, Finding{
			Level: Error, Object: "Node " + name,
			Reason: fmt.Sprintf("%s: pods that are to be captured are there outside of the mesh, without policy and in plaintext: %s", why, few(pods)),
			Next:   next + "; until then keep such pods off the node (kubectl cordon " + name + ")",
		})
	}
	return findings, nil
}

// few names the first of many.
func few(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// ofNode are the pods of a DaemonSet on a node, or that are for it alone and have not got there.
func ofNode(pods []corev1.Pod, node string) (found []corev1.Pod) {
	for _, p := range pods {
		if cmp.Or(p.Spec.NodeName, wantedNode(p)) == node {
			found = append(found, p)
		}
	}
	return found
}

// wantedNode is what the DaemonSet's controller has a pod be scheduled to.
func wantedNode(p corev1.Pod) string {
	if p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil || p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, term := range p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, field := range term.MatchFields {
			if field.Key == metav1.ObjectNameField && len(field.Values) == 1 {
				return field.Values[0]
			}
		}
	}
	return ""
}

func ready(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// notReady says why a ztunnel is not, as far as its pod says so.
func notReady(p corev1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return fmt.Sprintf("its ztunnel %s cannot be scheduled there (%s)", p.Name, cmp.Or(c.Message, c.Reason))
		}
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if w := c.State.Waiting; w != nil {
			return fmt.Sprintf("its ztunnel %s waits (%s)", p.Name, w.Reason)
		}
	}
	return fmt.Sprintf("its ztunnel %s is not ready", p.Name)
}

// notThere says why a DaemonSet has no pod on a node, and what to do.
func notThere(set *appsv1.DaemonSet, node *corev1.Node) (why, next string) {
	spec := set.Spec.Template.Spec
	for _, taint := range node.Spec.Taints {
		if repels(spec.Tolerations, taint) {
			return fmt.Sprintf("it has no ztunnel, whose DaemonSet does not tolerate the taint %s", taint.ToString()),
				"give DaemonSet ambit-system/ztunnel the toleration that it is installed with, {operator: Exists}"
		}
	}
	for _, key := range slices.Sorted(maps.Keys(spec.NodeSelector)) {
		if want := spec.NodeSelector[key]; node.Labels[key] != want {
			return fmt.Sprintf("it has no ztunnel, whose DaemonSet is for nodes with %s=%s, and its own is %q", key, want, node.Labels[key]),
				"let the DaemonSet ambit-system/ztunnel run there"
		}
	}
	return "it has no ztunnel", "kubectl -n ambit-system describe daemonset ztunnel says what keeps one from being made"
}

// kubernetesTaints are those that every DaemonSet's pods are made to tolerate.
const kubernetesTaints = "node.kubernetes.io/"

func repels(tolerations []corev1.Toleration, taint corev1.Taint) bool {
	return taint.Effect != corev1.TaintEffectPreferNoSchedule && !strings.HasPrefix(taint.Key, kubernetesTaints) &&
		!slices.ContainsFunc(tolerations, func(t corev1.Toleration) bool { return t.ToleratesTaint(klog.Background(), &taint, false) })
}
