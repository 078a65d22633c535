package check

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/workloads"
)

// problemsAnnotation of a node's heartbeat holds what the node reports to be
// wrong with itself, one problem a line.
const problemsAnnotation = "ambit.mesh/problems"

// Codes of problems that are questions of their own.
const (
	// startedUngated is about what was.
	startedUngated = "StartedUngated: "
	// clockSkewed is found by the controller, which compares.
	clockSkewed = "ClockSkewed: "
)

func askHeartbeats(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	nodes, err := cluster.Typed.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	problems, err := nodeProblems(ctx, cluster)
	if err != nil {
		return nil, err
	}
	beats, err := workloads.Heartbeats(ctx, cluster)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, node := range nodes.Items {
		if f, bad := heartbeat(node, beats); bad {
			findings = append(findings, f)
		}
	}
	for _, p := range problems {
		if !strings.HasPrefix(p.text, startedUngated) && !strings.HasPrefix(p.text, clockSkewed) {
			findings = append(findings, Finding{Level: Error, Object: "Node " + p.node, Reason: p.text, Next: "mend the node; ztunnel tries again by itself"})
		}
	}
	return findings, nil
}

// askUngated tells of pods that were enrolled, and started on a node whose CNI
// chain had lost the gate: what they said until they were captured was readable.
func askUngated(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	problems, err := nodeProblems(ctx, cluster)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, p := range problems {
		if text, ok := strings.CutPrefix(p.text, startedUngated); ok {
			findings = append(findings, Finding{
				Level: Warning, Object: "Node " + p.node, Reason: text,
				Next: "they are captured now; restart them to end connections that are older, and find out what overwrote the node's CNI configuration",
			})
		}
	}
	return findings, nil
}

// askClocks tells of nodes whose clocks are not the controller's.
func askClocks(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	problems, err := nodeProblems(ctx, cluster)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, p := range problems {
		if text, ok := strings.CutPrefix(p.text, clockSkewed); ok {
			findings = append(findings, Finding{
				Level: Error, Object: "Node " + p.node, Reason: text,
				Next: "if several nodes are skewed by the same time, it is the clock of the controller's node that is wrong",
			})
		}
	}
	return findings, nil
}

// nodeProblem is one thing that a node reports to be wrong with itself.
type nodeProblem struct{ node, text string }

func nodeProblems(ctx context.Context, cluster *kube.Cluster) (all []nodeProblem, err error) {
	leases, err := cluster.Typed.CoordinationV1().Leases(install.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for _, lease := range leases.Items {
		for text := range strings.SplitSeq(lease.Annotations[problemsAnnotation], "\n") {
			if text != "" {
				all = append(all, nodeProblem{strings.TrimPrefix(lease.Name, "ztunnel-"), text})
			}
		}
	}
	return all, nil
}

func heartbeat(node corev1.Node, beats map[string]time.Time) (Finding, bool) {
	last, known := beats[node.Name]
	next := "kubectl -n ambit-system get pods -o wide --field-selector spec.nodeName=" + node.Name
	if !known {
		return Finding{Level: Error, Object: "Node " + node.Name, Reason: "its ztunnel has never been heard of", Next: next}, true
	}
	if age := time.Since(last); age > workloads.StaleAfter {
		return Finding{
			Level: Error, Object: "Node " + node.Name, Reason: fmt.Sprintf("its ztunnel was last heard of %s ago: the states of its workloads are stale", age.Round(time.Second)), Next: next,
		}, true
	}
	return Finding{}, false
}

func askWorkloads(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	list, err := workloads.List(ctx, cluster, "", time.Now())
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, w := range list {
		level := Warning
		switch w.Status.State {
		case v1alpha1.StateCaptured, v1alpha1.StateNotEnrolled:
			continue
		case v1alpha1.StateFailed, v1alpha1.StateStale:
			level = Error
		}
		reason := w.Status.Summary
		if w.Status.Reason != "" {
			reason = w.Status.Reason
		}
		findings = append(findings, Finding{
			Level: level, Object: "Pod " + w.Namespace + "/" + w.Name, Reason: string(w.Status.State) + ": " + reason,
			Next: "kubectl -n " + w.Namespace + " describe workloads.ambit.mesh " + w.Name,
		})
	}
	return findings, nil
}

// askOlder tells how many connections would end if a namespace turned STRICT.
func askOlder(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	list, err := workloads.List(ctx, cluster, "", time.Now())
	if err != nil {
		return nil, err
	}
	return older(list), nil
}

func older(list []v1alpha1.Workload) (findings []Finding) {
	type counts struct{ connections, pods int }
	byNamespace := map[string]counts{}
	for _, w := range list {
		if n := int(w.Status.OlderConnections); n > 0 {
			c := byNamespace[w.Namespace]
			byNamespace[w.Namespace] = counts{c.connections + n, c.pods + 1}
		}
	}
	for _, namespace := range slices.Sorted(maps.Keys(byNamespace)) {
		c := byNamespace[namespace]
		findings = append(findings, Finding{
			Level: Warning, Object: "Namespace " + namespace,
			Reason: fmt.Sprintf("connections of %d of its pods are older than their capture, and so around the mesh, in plaintext: %d. They would be cut if the namespace turned STRICT, after the grace", c.pods, c.connections),
			Next:   fmt.Sprintf("ambit workloads -n %s -o older lists them; restart the pods at one of their ends to have them in the mesh", namespace),
		})
	}
	return findings
}

// askBareName finds out whose object `kubectl get workloads` shows.
func askBareName(_ context.Context, cluster *kube.Cluster) ([]Finding, error) {
	lists, err := cluster.Discovery.ServerPreferredResources()
	if err != nil && len(lists) == 0 {
		return nil, err
	}
	for _, list := range lists { // in the server's order of preference
		for _, r := range list.APIResources {
			if r.Name != "workloads" {
				continue
			}
			if strings.HasPrefix(list.GroupVersion, "ambit.mesh/") {
				return nil, nil
			}
			return []Finding{{
				Level: Warning, Reason: "kubectl get workloads shows those of " + list.GroupVersion,
				Next: "use kubectl get workloads.ambit.mesh, or ambit workloads",
			}}, nil
		}
	}
	return []Finding{{Level: Error, Reason: "the cluster serves no workloads.ambit.mesh: " + notInstalled, Next: "ambit install"}}, nil
}
