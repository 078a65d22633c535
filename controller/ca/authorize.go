package ca

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// TunnelServiceAccount is the only account that may ask for other identities.
const TunnelServiceAccount = "ztunnel"

const (
	// informerLag is how long a question about a pod waits for the pod to
	// become known here: its node may hear of it earlier.
	informerLag = time.Second
	// informerLook is how often it looks.
	informerLook = 20 * time.Millisecond
)

// authorize says whether a peer may have an identity. The error is a *refusal, for
// the log: the caller does not get to know it.
func (s *Server) authorize(ctx context.Context, peer Peer, identity spiffe.ID) error {
	if identity == peer.Identity(s.cfg.Authority.TrustDomain()) {
		return nil
	}
	if identity.TrustDomain != s.cfg.Authority.TrustDomain() {
		return refuse(ForeignTrustDomain, "trust domain %q is not this mesh's", identity.TrustDomain)
	}
	if peer.Namespace != s.cfg.SystemNamespace || peer.ServiceAccount != TunnelServiceAccount {
		return refuse(NotZtunnel, "only ztunnel may ask for another identity")
	}
	reason := s.mayImpersonate(peer, identity)
	for deadline := time.After(informerLag); reason != nil; reason = s.mayImpersonate(peer, identity) {
		select {
		case <-ctx.Done():
			return reason
		case <-deadline:
			return reason
		case <-time.After(informerLook):
		}
	}
	return nil
}

// mayImpersonate says why a ztunnel may not have an identity, nil if it may.
func (s *Server) mayImpersonate(peer Peer, identity spiffe.ID) error {
	caller, found := s.cfg.Pods.Pod(peer.Namespace, peer.PodName)
	switch {
	case !found:
		return refuse(CallerUnknown, "the calling pod is not known")
	case string(caller.UID) != peer.PodUID:
		return refuse(CallerReplaced, "the calling pod's UID is %s now", caller.UID)
	case caller.Spec.ServiceAccountName != peer.ServiceAccount:
		return refuse(CallerReplaced, "the calling pod's service account is %s", caller.Spec.ServiceAccountName)
	case caller.Spec.NodeName != peer.Node:
		return refuse(CallerElsewhere, "the calling pod runs on node %s", caller.Spec.NodeName)
	case terminal(caller):
		return refuse(CallerEnded, "the calling pod has ended")
	}
	for _, pod := range s.cfg.Pods.PodsOnNode(peer.Node) {
		if pod.Namespace == identity.Namespace && pod.Spec.ServiceAccountName == identity.ServiceAccount && !terminal(pod) {
			return nil
		}
	}
	return refuse(NotOnNode, "no pod on node %s has it", peer.Node)
}

func terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}
