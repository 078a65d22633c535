package kube

import (
	"context"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// pollPeriod is short, as what is waited for takes seconds.
const pollPeriod = 250 * time.Millisecond

// Progress is what a wait sees: done, or how far it is and what holds it up.
type Progress struct {
	Done bool
	Text string
}

// Poll asks until done or the context ends, and passes on every new text.
func Poll(ctx context.Context, ask func(context.Context) (Progress, error), tell func(string)) error {
	var last Progress
	for {
		now, err := ask(ctx)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil {
			if now.Text != last.Text {
				tell(now.Text)
			}
			if last = now; now.Done {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up waiting: %s", last.Text)
		case <-time.After(pollPeriod):
		}
	}
}

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// Established asks whether CustomResourceDefinitions are served, all of them.
func (c *Cluster) Established(names ...string) func(context.Context) (Progress, error) {
	return func(ctx context.Context) (Progress, error) {
		for _, name := range names {
			served, err := c.established(ctx, name)
			if err != nil {
				return Progress{}, err
			}
			if !served {
				return Progress{Text: name + " is not served yet"}, nil
			}
		}
		return Progress{Done: true, Text: "served"}, nil
	}
}

func (c *Cluster) established(ctx context.Context, name string) (bool, error) {
	object, err := c.Dynamic.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	status, _ := object.Object["status"].(map[string]any)
	conditions, _ := status["conditions"].([]any)
	for _, condition := range conditions {
		if m, ok := condition.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
			return true, nil
		}
	}
	return false, nil
}

// DeploymentAvailable asks whether all replicas of the latest revision are.
func (c *Cluster) DeploymentAvailable(namespace, name string) func(context.Context) (Progress, error) {
	return func(ctx context.Context) (Progress, error) {
		d, err := c.Typed.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return Progress{}, err
		}
		want := int32(1)
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		s := d.Status
		done := s.ObservedGeneration >= d.Generation && s.UpdatedReplicas == want && s.AvailableReplicas == want && s.Replicas == want
		return c.withPods(ctx, namespace, d.Spec.Selector, done, fmt.Sprintf("%d of %d replicas available", s.AvailableReplicas, want)), nil
	}
}

// DaemonSetReady asks whether the latest revision is ready on every node. A pod of
// an earlier one that is told to end does not count against it: it may take its
// time.
func (c *Cluster) DaemonSetReady(namespace, name string) func(context.Context) (Progress, error) {
	return func(ctx context.Context) (Progress, error) {
		d, err := c.Typed.AppsV1().DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return Progress{}, err
		}
		pods, err := c.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
		if err != nil {
			return Progress{}, err
		}
		ready := len(readyNodes(d, pods.Items))
		want := int(d.Status.DesiredNumberScheduled)
		done := d.Status.ObservedGeneration >= d.Generation && want > 0 && ready == want
		return c.withPods(ctx, namespace, d.Spec.Selector, done, fmt.Sprintf("%d of %d nodes ready", ready, want)), nil
	}
}

// readyNodes are those with a ready pod of the latest revision.
func readyNodes(d *appsv1.DaemonSet, pods []corev1.Pod) map[string]bool {
	nodes := map[string]bool{}
	for _, pod := range pods {
		latest := pod.Labels["pod-template-generation"] == d.Annotations[appsv1.DeprecatedTemplateGeneration]
		if !latest || pod.DeletionTimestamp != nil || !metav1.IsControlledBy(&pod, d) {
			continue
		}
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
				nodes[pod.Spec.NodeName] = true
			}
		}
	}
	return nodes
}

// Gone asks whether no pod of a label is left.
func (c *Cluster) Gone(namespace, selector string) func(context.Context) (Progress, error) {
	return func(ctx context.Context) (Progress, error) {
		pods, err := c.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return Progress{}, err
		}
		return Progress{Done: len(pods.Items) == 0, Text: fmt.Sprintf("%d pods left", len(pods.Items))}, nil
	}
}

// NamespaceGone asks whether a namespace is.
func (c *Cluster) NamespaceGone(name string) func(context.Context) (Progress, error) {
	return func(ctx context.Context) (Progress, error) {
		_, err := c.Typed.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return Progress{Done: true, Text: "gone"}, nil
		}
		return Progress{Text: "namespace " + name + " is being deleted"}, err
	}
}

// withPods adds what holds up the pods that are not ready.
func (c *Cluster) withPods(ctx context.Context, namespace string, selector *metav1.LabelSelector, done bool, text string) Progress {
	if done {
		return Progress{Done: true, Text: text}
	}
	pods, err := c.Typed.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(selector)})
	if err != nil {
		return Progress{Text: text}
	}
	var troubles []string
	for i := range pods.Items {
		if trouble := Trouble(&pods.Items[i]); trouble != "" {
			troubles = append(troubles, trouble)
		}
	}
	if len(troubles) > 0 {
		text += ": " + strings.Join(troubles, "; ")
	}
	return Progress{Text: text}
}

// Trouble says what holds up a pod, or nothing.
func Trouble(pod *corev1.Pod) string {
	where := pod.Name
	if pod.Spec.NodeName != "" {
		where += " on " + pod.Spec.NodeName
	}
	for _, status := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		if w := status.State.Waiting; w != nil && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
			return fmt.Sprintf("%s: %s %s", where, w.Reason, w.Message)
		}
		if t := status.State.Terminated; t != nil && t.ExitCode != 0 {
			return fmt.Sprintf("%s: ended with status %d %s", where, t.ExitCode, t.Message)
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return fmt.Sprintf("%s: %s %s", where, condition.Reason, condition.Message)
		}
	}
	return ""
}
