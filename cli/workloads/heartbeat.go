package workloads

import (
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/cli/kube"
)

const (
	systemNamespace = "ambit-system"
	// leasePrefix and the node's name make up the name of a node's heartbeat.
	leasePrefix = "ztunnel-"
	// StaleAfter is three times the period at which the controller renews a
	// heartbeat: one late write is no sign of anything.
	StaleAfter = 30 * time.Second
)

// Heartbeats returns when each node was last heard of.
func Heartbeats(ctx context.Context, cluster *kube.Cluster) (map[string]time.Time, error) {
	leases, err := cluster.Typed.CoordinationV1().Leases(systemNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list leases of %s: %w", systemNamespace, err)
	}
	beats := map[string]time.Time{}
	for _, lease := range leases.Items {
		node, ok := strings.CutPrefix(lease.Name, leasePrefix)
		if ok && lease.Spec.RenewTime != nil {
			beats[node] = lease.Spec.RenewTime.Time
		}
	}
	return beats, nil
}

// markStale overrides what was written when its node was still heard of.
func markStale(w *v1alpha1.Workload, beats map[string]time.Time, now time.Time) {
	last, known := beats[w.Spec.Node]
	observed := w.Status.State == v1alpha1.StateCaptured || w.Status.State == v1alpha1.StatePending || w.Status.State == v1alpha1.StateFailed
	if !known || !observed || now.Sub(last) < StaleAfter {
		return
	}
	since := metav1.NewTime(last)
	w.Status.State, w.Status.Since = v1alpha1.StateStale, &since
	w.Status.Summary = "Stale since " + last.UTC().Format(time.RFC3339)
	w.Status.Reason = "NoHeartbeat: ztunnel on " + w.Spec.Node + " has not been heard of"
}
