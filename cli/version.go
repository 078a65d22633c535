package main

import (
	"context"
	"fmt"
	"io"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/internal/daemon"
)

// printVersion prints the tool's version always, the cluster's where there is one.
func printVersion(ctx context.Context, g *target, out io.Writer) error {
	fmt.Fprintln(out, "ambit", daemon.Version)
	cluster, err := g.connect()
	if err != nil {
		fmt.Fprintln(out, "cluster: none configured")
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	pods, err := cluster.Typed.CoreV1().Pods(install.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=ambit"})
	if err != nil {
		return fmt.Errorf("list pods of %s: %w", install.Namespace, err)
	}
	if len(pods.Items) == 0 {
		fmt.Fprintln(out, "cluster: Ambit is not installed")
	}
	for _, pod := range pods.Items {
		for _, container := range pod.Spec.Containers {
			fmt.Fprintf(out, "%s on %s: %s\n", pod.Name, pod.Spec.NodeName, container.Image)
		}
	}
	return nil
}
