package check

import (
	"fmt"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

// A node where pods are to be captured, and nothing captures, is named, with the reason and what to do.
func TestNodesWithoutZtunnelAreNamed(t *testing.T) {
	set := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ambit-system", Name: "ztunnel"}, Spec: appsv1.DaemonSetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "ztunnel"}},
		Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{
			NodeSelector: map[string]string{"kubernetes.io/os": "linux"},
			Tolerations:  []corev1.Toleration{{Key: "edge", Operator: corev1.TolerationOpExists}},
		}},
	}}
	node := func(name, os string, taints ...corev1.Taint) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/os": os}}, Spec: corev1.NodeSpec{Taints: taints}}
	}
	ztunnel := func(node string, change func(*corev1.Pod)) *corev1.Pod {
		p := pod("ambit-system", "ztunnel-"+node, map[string]string{"app": "ztunnel"})
		p.Spec.NodeName = node
		change(p)
		return p
	}
	condition := func(kind corev1.PodConditionType, status corev1.ConditionStatus, message string) []corev1.PodCondition {
		return []corev1.PodCondition{{Type: kind, Status: status, Message: message}}
	}
	taint := func(key string, effect corev1.TaintEffect) corev1.Taint {
		return corev1.Taint{Key: key, Value: "yes", Effect: effect}
	}
	cluster := clusterOf(set,
		node("fine", "linux"), ztunnel("fine", func(p *corev1.Pod) { p.Status.Conditions = condition(corev1.PodReady, corev1.ConditionTrue, "") }),
		node("tainted", "linux", taint("edge", corev1.TaintEffectNoExecute), taint("soft", corev1.TaintEffectPreferNoSchedule),
			taint("node.kubernetes.io/unschedulable", corev1.TaintEffectNoSchedule), taint("gpu", corev1.TaintEffectNoSchedule)),
		node("elsewhere", "plan9"),
		node("bare", "linux", taint("node.kubernetes.io/unschedulable", corev1.TaintEffectNoSchedule)),
		node("full", "linux"), ztunnel("full", func(p *corev1.Pod) {
			p.Spec.NodeName = ""
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"full"}}}}},
			}}}
			p.Status.Conditions = condition(corev1.PodScheduled, corev1.ConditionFalse, "Insufficient memory")
		}),
		node("crashing", "linux"), ztunnel("crashing", func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}}}
		}),
		node("empty", "plan9"), node("restarting", "linux"),
	)
	dynamic := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		v1alpha1.GroupVersion.WithResource("workloads"): "WorkloadList",
	})
	add := func(name, node string, state v1alpha1.State, protocol v1alpha1.Protocol) {
		w := &v1alpha1.Workload{
			TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Workload"},
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec:       v1alpha1.WorkloadSpec{Node: node}, Status: v1alpha1.WorkloadStatus{State: state, Protocol: protocol},
		}
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(w)
		if err != nil {
			t.Fatal(err)
		}
		if err := dynamic.Tracker().Create(v1alpha1.GroupVersion.WithResource("workloads"), &unstructured.Unstructured{Object: object}, "shop"); err != nil {
			t.Fatal(err)
		}
	}
	for _, node := range []string{"fine", "tainted", "elsewhere", "bare", "full", "crashing", "deleted"} {
		add("on-"+node, node, v1alpha1.StatePending, v1alpha1.ProtocolTCP)
	}
	add("unscheduled", "", v1alpha1.StatePending, v1alpha1.ProtocolTCP)
	add("opted-out", "empty", v1alpha1.StateNotEnrolled, v1alpha1.ProtocolTCP)
	add("captured", "empty", v1alpha1.StateCaptured, v1alpha1.ProtocolHBONE)
	add("guarded", "restarting", v1alpha1.StateStale, v1alpha1.ProtocolHBONE) // by what the kernel has
	for i := range 6 {
		add(fmt.Sprint("more", i), "bare", v1alpha1.StateFailed, v1alpha1.ProtocolTCP)
	}
	cluster.Dynamic = dynamic
	findings, err := askAlone(t.Context(), cluster)
	wantFindings(t, findings, err,
		"error|Node bare|no ztunnel:|shop/more0, shop/more1, shop/more2, shop/more3, shop/more4 and 2 more|describe daemonset ztunnel|cordon bare",
		"error|Node crashing|ztunnel-crashing waits (CrashLoopBackOff)|shop/on-crashing|describe pod ztunnel-crashing",
		"error|Node elsewhere|kubernetes.io/os=linux|plan9|shop/on-elsewhere",
		"error|Node full|cannot be scheduled there (Insufficient memory)|shop/on-full",
		"error|Node tainted|does not tolerate the taint gpu=yes:NoSchedule|shop/on-tainted|{operator: Exists}",
	)
}
