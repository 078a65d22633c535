package kube

import (
	"maps"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Only pods of the latest revision count, and of those the ready ones; what is told to end does neither harm nor good.
func TestReadyNodes(t *testing.T) {
	d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{UID: "d", Annotations: map[string]string{appsv1.DeprecatedTemplateGeneration: "2"}}}
	pod := func(node, generation string, owner types.UID, ready corev1.ConditionStatus, ends bool) corev1.Pod {
		p := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Labels:          map[string]string{"pod-template-generation": generation},
				OwnerReferences: []metav1.OwnerReference{{UID: owner, Controller: new(true)}},
			},
			Spec:   corev1.PodSpec{NodeName: node},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
		}
		if ends {
			p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
		}
		return p
	}
	got := readyNodes(d, []corev1.Pod{
		pod("both", "1", "d", corev1.ConditionTrue, true), pod("both", "2", "d", corev1.ConditionTrue, false),
		pod("old", "1", "d", corev1.ConditionTrue, false),
		pod("starting", "2", "d", corev1.ConditionFalse, false),
		pod("ending", "2", "d", corev1.ConditionTrue, true),
		pod("other's", "2", "e", corev1.ConditionTrue, false),
		pod("new", "2", "d", corev1.ConditionTrue, false),
	})
	if nodes := slices.Sorted(maps.Keys(got)); !slices.Equal(nodes, []string{"both", "new"}) {
		t.Errorf("ready: %q", nodes)
	}
}
