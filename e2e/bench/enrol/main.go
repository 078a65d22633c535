// Command enrol measures how long it takes from the label on a namespace to the
// capture of its pods, as a client of the Kubernetes API sees it.
//
//	go run ./e2e/bench/enrol -pods 100
//
// It deploys the pods, waits until all are ready, sets the label, and notes for
// each pod when its Workload first says Captured. It prints percentiles in
// milliseconds and, with -json, the raw figures too. The cluster of the
// checkout must be up, with Ambit installed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

const namespace = "bench-enrol"

var workloads = schema.GroupVersionResource{Group: "ambit.mesh", Version: "v1alpha1", Resource: "workloads"}

func main() {
	pods := flag.Int("pods", 100, "number of pods")
	raw := flag.Bool("json", false, "print the raw figures as JSON")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if err := run(ctx, *pods, *raw); err != nil {
		fmt.Fprintln(os.Stderr, "enrol:", err)
		os.Exit(1)
	}
}

// Result is one run.
type Result struct {
	Pods int `json:"pods"`
	// Milliseconds from the label to each pod's capture, ascending.
	Milliseconds []float64 `json:"milliseconds"`
	P50          float64   `json:"p50"`
	P99          float64   `json:"p99"`
	Max          float64   `json:"max"`
}

func run(ctx context.Context, pods int, raw bool) (err error) {
	bed, err := testbed.Find()
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", bed.Kubeconfig())
	if err != nil {
		return err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	defer func() {
		_, failed := bed.Kubectl(context.WithoutCancel(ctx), "delete", "namespace", namespace, "--ignore-not-found", "--wait")
		err = errors.Join(err, failed)
	}()
	if err := deploy(ctx, bed, pods); err != nil {
		return err
	}
	result, err := measure(ctx, bed, client, pods)
	if err != nil {
		return err
	}
	if raw {
		return json.NewEncoder(os.Stdout).Encode(result)
	}
	fmt.Printf("%d pods: p50 %.0f ms, p99 %.0f ms, last %.0f ms from the label to Captured\n", result.Pods, result.P50, result.P99, result.Max)
	return nil
}

func deploy(ctx context.Context, bed *testbed.Bed, pods int) error {
	if _, err := bed.Kubectl(ctx, "delete", "namespace", namespace, "--ignore-not-found", "--wait"); err != nil {
		return err
	}
	if _, err := bed.Kubectl(ctx, "create", "namespace", namespace); err != nil {
		return err
	}
	manifest := fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: %d
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: app, image: "ambit.mesh/shop:dev", imagePullPolicy: IfNotPresent, args: [tool, sleep, 1h]}]
`, pods)
	if err := bed.Apply(ctx, namespace, []byte(manifest)); err != nil {
		return err
	}
	_, err := bed.Kubectl(ctx, "-n", namespace, "rollout", "status", "deployment/many", "--timeout=300s")
	return err
}

// measure sets the label and watches.
func measure(ctx context.Context, bed *testbed.Bed, client dynamic.Interface, pods int) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	events, err := client.Resource(workloads).Namespace(namespace).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return Result{}, err
	}
	defer events.Stop()
	start := time.Now()
	if _, err := bed.Kubectl(ctx, "label", "namespace", namespace, "ambit.mesh/dataplane-mode=ambient"); err != nil {
		return Result{}, err
	}
	captured := map[string]float64{}
	for len(captured) < pods {
		select {
		case event, ok := <-events.ResultChan():
			if !ok {
				return Result{}, fmt.Errorf("the watch ended after %d pods of %d", len(captured), pods)
			}
			if name := capturedBy(event); name != "" && captured[name] == 0 {
				captured[name] = float64(time.Since(start).Microseconds()) / 1000
			}
		case <-ctx.Done():
			return Result{}, fmt.Errorf("%d pods of %d captured in a minute", len(captured), pods)
		}
	}
	return summary(captured), nil
}

// capturedBy returns the workload that an event shows as captured, or nothing.
func capturedBy(event watch.Event) string {
	object, ok := event.Object.(*unstructured.Unstructured)
	if !ok || event.Type == watch.Deleted {
		return ""
	}
	state, _, _ := unstructured.NestedString(object.Object, "status", "state")
	if strings.EqualFold(state, "Captured") {
		return object.GetName()
	}
	return ""
}

func summary(captured map[string]float64) Result {
	r := Result{Pods: len(captured)}
	for _, ms := range captured {
		r.Milliseconds = append(r.Milliseconds, ms)
	}
	slices.Sort(r.Milliseconds)
	at := func(share float64) float64 {
		return r.Milliseconds[min(len(r.Milliseconds)-1, int(share*float64(len(r.Milliseconds))))]
	}
	r.P50, r.P99, r.Max = at(0.50), at(0.99), r.Milliseconds[len(r.Milliseconds)-1]
	return r
}
