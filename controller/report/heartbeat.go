package report

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationapply "k8s.io/client-go/applyconfigurations/coordination/v1"

	reportapi "github.com/ambit-mesh/ambit/api/report"
)

const (
	// leaseInterval is how often a node's Lease is written: as often as the
	// kubelet writes its own.
	leaseInterval = 10 * time.Second
	// leaseDuration is after when a reader of the Lease alone has to take the
	// node for silent: what is silent here, one interval, and a slow write.
	leaseDuration = SilentAfter + leaseInterval + 5*time.Second
	// silenceInterval is how often nodes are checked for silence.
	silenceInterval = time.Second
	// leaseRetry is how soon a list of Leases is tried again.
	leaseRetry = 2 * time.Second

	// fieldManager owns the fields of the Leases.
	fieldManager = "ambit-controller"
	leasePrefix  = "ztunnel-"
	// leaseLabel marks the Leases that are nodes' heartbeats.
	leaseLabel = "ambit.mesh/heartbeat"
	leaseValue = "ztunnel"
	// annotationProblems holds a node's problems, one a line.
	annotationProblems = "ambit.mesh/problems"
	// annotationVersion holds the version of the node's ztunnel.
	annotationVersion = "ambit.mesh/ztunnel-version"
)

// Silent says whether a node's heartbeat stopped, and when it was last heard. A
// node that never reported is not silent: nothing is known of it.
func (r *Registry) Silent(nodeName string) (last time.Time, silent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ok := r.nodes[nodeName]
	if !ok {
		return time.Time{}, false
	}
	return n.heartbeat, r.isSilentLocked(n)
}

func (r *Registry) isSilentLocked(n *node) bool {
	if n.heartbeat.IsZero() {
		return false
	}
	from := n.heartbeat
	if r.judgedFrom.After(from) {
		from = r.judgedFrom
	}
	return r.cfg.Now().Sub(from) > SilentAfter
}

func (r *Registry) silentLocked() (silent int) {
	for _, n := range r.nodes {
		if r.isSilentLocked(n) {
			silent++
		}
	}
	return silent
}

// judge tells of every node that fell silent or came back.
func (r *Registry) judge() {
	var turned []string
	r.mu.Lock()
	for name, n := range r.nodes {
		if silent := r.isSilentLocked(n); silent != n.silent {
			n.silent = silent
			turned = append(turned, name)
			r.cfg.Logger.Warn("node heartbeat", "node", name, "silent", silent, "last", n.heartbeat)
		}
	}
	r.mu.Unlock()
	for _, name := range turned {
		r.notifyNode(name)
	}
}

// beat takes a sign of life.
func (r *Registry) beat(s *session, message *reportapi.Heartbeat) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodeLocked(s.node)
	if n.session != s {
		return
	}
	n.heartbeat = r.cfg.Now()
	n.roots, n.rootsTold = cutAll(message.GetCertificates().GetRoots()), message.GetCertificates() != nil
	n.skew.measure(message.GetNow(), n.heartbeat)
	if problems := cutAll(append(n.skew.problems(), message.GetProblems()...)); !slices.Equal(problems, n.problems) {
		n.problems = problems
		if len(problems) > 0 {
			r.cfg.Logger.Warn("node has problems", "node", s.node, "problems", problems)
		}
	}
}

// HoldsNone tells whether a node said, after a time, that none of its
// certificates chains to a root, named by its fingerprint.
func (r *Registry) HoldsNone(nodeName, fingerprint string, after time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, ok := r.nodes[nodeName]
	return ok && n.session != nil && n.rootsTold && n.heartbeat.After(after) && !slices.Contains(n.roots, fingerprint)
}

// readHeartbeats takes over from the Leases what an earlier leader knew.
func (r *Registry) readHeartbeats(ctx context.Context) error {
	for {
		leases, err := r.cfg.Leases.List(ctx, metav1.ListOptions{LabelSelector: leaseLabel + "=" + leaseValue})
		if err == nil {
			r.takeOver(leases.Items)
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		r.cfg.Logger.Error("read heartbeats of nodes", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(leaseRetry):
		}
	}
}

func (r *Registry) takeOver(leases []coordinationv1.Lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, lease := range leases {
		name, ok := strings.CutPrefix(lease.Name, leasePrefix)
		if !ok || lease.Spec.RenewTime == nil {
			continue
		}
		n := r.nodeLocked(name)
		if lease.Spec.RenewTime.After(n.heartbeat) {
			n.heartbeat = lease.Spec.RenewTime.Time
		}
		n.written = lease.Spec.RenewTime.Time
	}
}

// beatDue is one Lease to be written, or to be deleted.
type beatDue struct {
	node, podName, version string
	heartbeat              time.Time
	problems               []string
	gone                   bool
}

// writeHeartbeats brings the Leases up to date: one write for each node that
// gave a sign of life since the last.
func (r *Registry) writeHeartbeats(ctx context.Context) {
	for _, due := range r.dueBeats() {
		if ctx.Err() != nil {
			return
		}
		write := r.writeLease
		if due.gone {
			write = r.deleteLease
		}
		if err := write(ctx, due); err != nil && ctx.Err() == nil {
			r.cfg.Logger.Error("write heartbeat of node", "node", due.node, "error", err)
		}
	}
}

func (r *Registry) dueBeats() (due []beatDue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, n := range r.nodes {
		gone := n.session == nil && r.isSilentLocked(n) && !r.cfg.Tunnels.Exists(name)
		if gone || n.heartbeat.After(n.written) || !slices.Equal(n.problems, n.problemsWritten) {
			due = append(due, beatDue{
				node: name, podName: n.podName, version: n.version,
				heartbeat: n.heartbeat, problems: n.problems, gone: gone,
			})
		}
	}
	return due
}

// writeLease applies a node's Lease: one request, whether there is one or not.
func (r *Registry) writeLease(ctx context.Context, due beatDue) error {
	name := leasePrefix + due.node
	lease := coordinationapply.Lease(name, "").
		WithLabels(map[string]string{leaseLabel: leaseValue, "app.kubernetes.io/part-of": "ambit"}).
		WithAnnotations(map[string]string{annotationVersion: due.version, annotationProblems: strings.Join(due.problems, "\n")}).
		WithSpec(coordinationapply.LeaseSpec().
			WithHolderIdentity(due.podName).
			WithLeaseDurationSeconds(int32(leaseDuration / time.Second)).
			WithRenewTime(metav1.NewMicroTime(due.heartbeat)))
	lease.Namespace = nil // The client's.
	if _, err := r.cfg.Leases.Apply(ctx, lease, metav1.ApplyOptions{FieldManager: fieldManager, Force: true}); err != nil {
		return fmt.Errorf("write lease %s: %w", name, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.nodeLocked(due.node)
	n.written, n.problemsWritten = due.heartbeat, due.problems
	return nil
}

// deleteLease ends the record of a node that is gone from Kubernetes.
func (r *Registry) deleteLease(ctx context.Context, due beatDue) error {
	err := r.cfg.Leases.Delete(ctx, leasePrefix+due.node, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete lease %s%s: %w", leasePrefix, due.node, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if n, ok := r.nodes[due.node]; ok && n.session == nil {
		delete(r.nodes, due.node)
	}
	return nil
}
