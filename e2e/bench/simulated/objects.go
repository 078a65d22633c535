package simulated

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/e2e/bench/simulated/apiserver"
)

const (
	systemNamespace = "ambit-system"
	modeLabel       = "ambit.mesh/dataplane-mode"
)

// serviceAddress is the virtual address of the Service of the i-th pod.
func serviceAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, 0, byte(10 + i)}) }

// putObjects tells Kubernetes what is there.
func (m *Mesh) putObjects(context.Context) error {
	objects := []runtime.Object{namespaceObject(systemNamespace), namespaceObject(Namespace)}
	for _, name := range append(slices.Clone(m.config.Nodes), control) {
		objects = append(objects, nodeObject(name, m.nodes[name].PodRanges()))
	}
	for name, pod := range m.system {
		account, _, _ := strings.Cut(name, "-")
		objects = append(objects, podObject(podSpec{
			namespace: systemNamespace, name: name, account: account, node: pod.Node.Name, ips: []netip.Addr{pod.IPv4, pod.IPv6},
		}))
	}
	for i, p := range m.config.Pods {
		pod := m.pods[p.Name]
		spec := podSpec{
			namespace: Namespace, name: p.Name, account: p.Name, node: p.Node,
			ips: []netip.Addr{pod.IPv4, pod.IPv6}, labels: map[string]string{"app": p.Name, modeLabel: mode(!p.Outside)},
		}
		objects = append(objects, podObject(spec))
		if p.Port != 0 {
			objects = append(objects, serviceObjects(service{
				namespace: Namespace, name: p.Name, address: serviceAddress(i), port: p.Port, targetPort: p.Port, pods: []podSpec{spec},
			})...)
		}
	}
	return m.api.Put(append(objects, m.fleet()...)...)
}

func mode(enrolled bool) string {
	if enrolled {
		return "ambient"
	}
	return "none"
}

// Enrol asks for a pod to be captured, or to be let go.
func (m *Mesh) Enrol(pod string, enrolled bool) error {
	object := &corev1.Pod{}
	if !apiserver.Get(m.api, Namespace, pod, object) {
		return fmt.Errorf("enrol pod %s: there is none", pod)
	}
	object.Labels[modeLabel] = mode(enrolled)
	return m.api.Put(object)
}

// enrolled returns the names of the pods that are to be captured.
func (m *Mesh) enrolled() (names []string) {
	for _, p := range m.config.Pods {
		object := &corev1.Pod{}
		if apiserver.Get(m.api, Namespace, p.Name, object) && object.Labels[modeLabel] == mode(true) {
			names = append(names, p.Name)
		}
	}
	return names
}

// subject is who a container's process is.
func (m *Mesh) subject(pod *RunningPod) apiserver.Subject {
	s := apiserver.Subject{Namespace: systemNamespace, PodName: pod.Name, Node: pod.Node.Name}
	object := &corev1.Pod{}
	if apiserver.Get(m.api, systemNamespace, pod.Name, object) {
		s.ServiceAccount, s.PodUID = object.Spec.ServiceAccountName, object.UID
	}
	return s
}

func namespaceObject(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelMetadataName: name}}}
}

func nodeObject(name string, podRanges []netip.Prefix) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelTopologyRegion: "region-1", corev1.LabelTopologyZone: "region-1a",
		}},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	}
	for _, prefix := range podRanges {
		n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, prefix.String())
	}
	n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	return n
}

// podSpec is what differs between pods.
type podSpec struct {
	namespace, name, account, node string
	replicaSet                     string
	ips                            []netip.Addr
	labels                         map[string]string
}

// podObject is a pod that runs and is ready.
func podObject(s podSpec) *corev1.Pod {
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: s.name, Labels: s.labels},
		Spec: corev1.PodSpec{
			NodeName: s.node, ServiceAccountName: s.account,
			Containers: []corev1.Container{{Name: "main", Image: "registry.example/" + s.account + ":1"}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, StartTime: &now,
			ContainerStatuses: []corev1.ContainerStatus{{
				Name: "main", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
			}},
		},
	}
	for _, condition := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: condition, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	for _, ip := range s.ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip.String()})
	}
	if len(s.ips) > 0 {
		p.Status.PodIP = s.ips[0].String()
	}
	if s.replicaSet != "" {
		controls := true
		p.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: "apps/v1", Kind: "ReplicaSet", Name: s.replicaSet, UID: types.UID(s.replicaSet), Controller: &controls,
		}}
	}
	return p
}

// service is a Service and its endpoints.
type service struct {
	namespace, name  string
	address          netip.Addr
	port, targetPort uint16
	pods             []podSpec
}

func serviceObjects(s service) []runtime.Object {
	selector := map[string]string{"app": s.name}
	portName, protocol := "tcp", corev1.ProtocolTCP
	target := int32(s.targetPort)
	ready := true
	object := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: s.name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: s.address.String(), ClusterIPs: []string{s.address.String()},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Selector: selector,
			Ports: []corev1.ServicePort{{Name: portName, Protocol: protocol, Port: int32(s.port)}},
		},
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.namespace, Name: s.name + "-0", Labels: map[string]string{discoveryv1.LabelServiceName: s.name},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Protocol: &protocol, Port: &target}},
	}
	for _, p := range s.pods {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{p.ips[0].String()}, NodeName: &p.node,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.namespace, Name: p.name},
		})
	}
	return []runtime.Object{object, slice}
}
