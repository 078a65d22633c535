package pods

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Namespaces are the network namespaces of this node's pods.
type Namespaces interface {
	// Scan lists all, each with the addresses in it.
	Scan() ([]Namespace, error)
	// Inode identifies the namespace that a path names now; an error wrapping
	// fs.ErrNotExist where there is none.
	Inode(path string) (uint64, error)
}

// Namespace is one network namespace.
type Namespace struct {
	Path  string
	Inode uint64
	// Created is when the namespace was made.
	Created time.Time
	Addrs   []netip.Addr
}

// Sandbox is a pod's network namespace.
type Sandbox struct {
	Path  string
	Inode uint64
	// IPs of the pod, which are addresses in it.
	IPs []netip.Addr
	// ContainerID of the sandbox, where the CNI plugin told it.
	ContainerID string
	// Created is when it was made, where it was searched for: zero where the CNI
	// plugin told.
	Created time.Time
}

var errNoNamespace = errors.New("no network namespace with the pod's addresses is known to be its own yet")

// ambiguousError: several namespaces have a pod's addresses, so none is surely its own.
type ambiguousError struct{ paths []string }

func (e *ambiguousError) Error() string {
	return fmt.Sprintf("network namespaces %q all have the pod's addresses", e.paths)
}

// createdSlack allows for Kubernetes' timestamps of whole seconds.
const createdSlack = 2 * time.Second

// match finds the one namespace that is a pod's: it has all of the pod's
// addresses, no other pod claims it, and Kubernetes has seen something of the
// pod after the namespace was made. The last tells a pod apart from one that
// got its old address: after a power cut a pod's status holds the address of a
// sandbox that is gone, which may be another pod's by now.
func match(ips []netip.Addr, lastSeen time.Time, claimed map[string]bool, all []Namespace) (Namespace, error) {
	var found []Namespace
	missing := errNoNamespace
	for _, candidate := range all {
		if len(ips) == 0 || claimed[candidate.Path] || !containsAll(candidate.Addrs, ips) {
			continue
		}
		if !lastSeen.IsZero() && candidate.Created.After(lastSeen.Add(createdSlack)) {
			missing = fmt.Errorf("%w: %s has them, and was made after Kubernetes last saw the pod start something", errNoNamespace, candidate.Path)
			continue
		}
		found = append(found, candidate)
	}
	switch len(found) {
	case 0:
		return Namespace{}, missing
	case 1:
		return found[0], nil
	}
	ambiguous := &ambiguousError{}
	for _, namespace := range found {
		ambiguous.paths = append(ambiguous.paths, namespace.Path)
	}
	return Namespace{}, ambiguous
}

func containsAll(all, some []netip.Addr) bool {
	for _, ip := range some {
		if !slices.Contains(all, ip) {
			return false
		}
	}
	return true
}

// podIPs returns the addresses that Kubernetes knows of a pod; none while it
// has no sandbox.
func podIPs(pod *corev1.Pod) []netip.Addr {
	var ips []netip.Addr
	for _, ip := range pod.Status.PodIPs {
		if parsed, err := netip.ParseAddr(ip.IP); err == nil {
			ips = append(ips, parsed.Unmap())
		}
	}
	return ips
}

// lastSeen returns the latest moment at which the kubelet saw something happen
// in the pod's sandbox; zero where its status does not tell.
func lastSeen(pod *corev1.Pod) time.Time {
	var latest time.Time
	note := func(t time.Time) {
		if t.After(latest) {
			latest = t
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReadyToStartContainers && condition.Status == corev1.ConditionTrue {
			note(condition.LastTransitionTime.Time)
		}
	}
	for _, statuses := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, status := range statuses {
			for _, state := range []corev1.ContainerState{status.State, status.LastTerminationState} {
				if state.Running != nil {
					note(state.Running.StartedAt.Time)
				}
				if state.Terminated != nil {
					note(state.Terminated.StartedAt.Time)
				}
			}
		}
	}
	return latest
}
