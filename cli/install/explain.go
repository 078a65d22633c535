package install

import (
	"bufio"
	"bytes"
	"context"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/term"
)

// explain prints what the pods that are not ready last said, so that nobody has
// to search for it.
func explain(ctx context.Context, cluster *kube.Cluster, t *term.Terminal) {
	pods, err := cluster.Typed.CoreV1().Pods(Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for _, pod := range pods.Items {
		if ready(pod) {
			continue
		}
		t.Line(term.Failure, "pod %s on %s is %s", pod.Name, pod.Spec.NodeName, pod.Status.Phase)
		if trouble := kube.Trouble(&pod); trouble != "" {
			t.Note("%s", trouble)
		}
		for _, line := range lastWords(ctx, cluster, pod) {
			t.Note("%s", line)
		}
	}
}

func ready(pod corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// lastWords are the last warnings and errors of a pod's log, else its last lines.
func lastWords(ctx context.Context, cluster *kube.Cluster, pod corev1.Pod) []string {
	const lines, shown = int64(200), 5
	count := lines
	body, err := cluster.Typed.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{TailLines: &count}).DoRaw(ctx)
	if err != nil {
		return nil
	}
	var all, bad []string
	for scanner := bufio.NewScanner(bytes.NewReader(body)); scanner.Scan(); {
		line := scanner.Text()
		all = append(all, line)
		if strings.Contains(line, "ERROR") || strings.Contains(line, "WARN") {
			bad = append(bad, line)
		}
	}
	if len(bad) == 0 {
		bad = all
	}
	return bad[max(0, len(bad)-shown):]
}
