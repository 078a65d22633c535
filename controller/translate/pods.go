package translate

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// pod is a published pod with the addresses that are its own.
type pod struct {
	*corev1.Pod
	addresses []netip.Addr
}

// podIndex finds published pods.
type podIndex struct {
	all    []*pod // ordered by namespace and name
	byName map[types.NamespacedName]*pod
	byAddr map[netip.Addr]*pod // pods with a network of their own
}

// indexPods picks the pods that are published: those with an address that have
// not ended. An address that a network assigned anew, while the object of its
// last owner is still there, belongs to the new pod.
func indexPods(all []*corev1.Pod) *podIndex {
	index := &podIndex{
		byName: make(map[types.NamespacedName]*pod),
		byAddr: make(map[netip.Addr]*pod),
	}
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(a, b *corev1.Pod) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	for _, p := range sorted {
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.Spec.HostNetwork {
			continue
		}
		candidate := &pod{Pod: p}
		for _, addr := range podAddresses(p) {
			if owner, ok := index.byAddr[addr]; !ok || supersedes(p, owner.Pod) {
				index.byAddr[addr] = candidate
			}
		}
	}
	for _, p := range sorted {
		index.publish(p)
	}
	return index
}

// publish a pod with the addresses that are its own, if any.
func (index *podIndex) publish(p *corev1.Pod) {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return
	}
	var published *pod
	for _, addr := range podAddresses(p) {
		switch {
		case p.Spec.HostNetwork && published == nil:
			published = &pod{Pod: p}
		case !p.Spec.HostNetwork && index.byAddr[addr].Pod != p:
			continue
		case !p.Spec.HostNetwork:
			published = index.byAddr[addr]
		}
		published.addresses = append(published.addresses, addr)
	}
	if published != nil {
		index.all = append(index.all, published)
		index.byName[nameOf(p)] = published
	}
}

// supersedes tells whether p rather than other has the address that both claim.
func supersedes(p, other *corev1.Pod) bool {
	if leaving := p.DeletionTimestamp != nil; leaving != (other.DeletionTimestamp != nil) {
		return !leaving
	}
	if !p.CreationTimestamp.Equal(&other.CreationTimestamp) {
		return other.CreationTimestamp.Before(&p.CreationTimestamp)
	}
	return p.UID > other.UID
}

// podAddresses returns a pod's addresses, the primary one first.
func podAddresses(p *corev1.Pod) []netip.Addr {
	var addresses []netip.Addr
	for _, ip := range p.Status.PodIPs {
		if addr, ok := parseAddr(ip.IP); ok {
			addresses = append(addresses, addr)
		}
	}
	if addr, ok := parseAddr(p.Status.PodIP); ok && len(addresses) == 0 {
		addresses = append(addresses, addr)
	}
	return addresses
}

func (p *pod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func nameOf(p *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

// parseAddr reads an address in the one form in which addresses are compared.
func parseAddr(s string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}
