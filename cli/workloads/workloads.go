// Package workloads shows what the mesh observes of every pod.
//
// It reads Workload objects, and one heartbeat a node: where a node's heartbeat
// stopped, the state shown is Stale and says since when, even while the
// controller that would write so is down.
package workloads

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/cli/kube"
)

// Query says which workloads, and how to print them.
type Query struct {
	// Namespace; empty means all.
	Namespace string
	// Output is empty (a table), wide, older (connections that are older than the
	// capture), json, yaml or name.
	Output string
}

var resource = schema.GroupVersionResource{Group: v1alpha1.GroupVersion.Group, Version: v1alpha1.GroupVersion.Version, Resource: "workloads"}

// List returns the workloads, with Stale where the node's heartbeat stopped.
func List(ctx context.Context, cluster *kube.Cluster, namespace string, now time.Time) ([]v1alpha1.Workload, error) {
	list, err := cluster.Dynamic.Resource(resource).Namespace(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list workloads.ambit.mesh: %w", err)
	}
	beats, err := Heartbeats(ctx, cluster)
	if err != nil {
		return nil, err
	}
	workloads := make([]v1alpha1.Workload, 0, len(list.Items))
	for _, item := range list.Items {
		var w v1alpha1.Workload
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.Object, &w); err != nil {
			return nil, fmt.Errorf("decode workload %s/%s: %w", item.GetNamespace(), item.GetName(), err)
		}
		markStale(&w, beats, now)
		workloads = append(workloads, w)
	}
	return workloads, nil
}

// Print lists and prints.
func Print(ctx context.Context, cluster *kube.Cluster, query Query, out io.Writer) error {
	now := time.Now()
	list, err := List(ctx, cluster, query.Namespace, now)
	if err != nil {
		return err
	}
	switch query.Output {
	case "", "wide":
		return table(out, list, query.Output == "wide", now)
	case "older":
		return older(out, list)
	case "json", "yaml":
		return structured(out, list, query.Output)
	case "name":
		for _, w := range list {
			fmt.Fprintf(out, "%s/%s\n", w.Namespace, w.Name)
		}
		return nil
	}
	return fmt.Errorf("--output %q: want wide, older, json, yaml or name", query.Output)
}

func structured(out io.Writer, list []v1alpha1.Workload, format string) error {
	object := v1alpha1.WorkloadList{Items: list}
	object.APIVersion, object.Kind = v1alpha1.GroupVersion.String(), "WorkloadList"
	body, err := json.MarshalIndent(object, "", "  ")
	if err == nil && format == "yaml" {
		body, err = yaml.JSONToYAML(body)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, strings.TrimRight(string(body), "\n"))
	return err
}

func table(out io.Writer, list []v1alpha1.Workload, wide bool, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	header := []string{"NAMESPACE", "NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL", "STATE", "OLDER", "AGE"}
	if wide {
		header = append(header, "IDENTITY", "CERT-EXPIRES", "CERT-SERIAL", "CONFIG")
	}
	fmt.Fprintln(w, strings.Join(header, "\t"))
	for _, item := range list {
		fmt.Fprintln(w, strings.Join(row(item, wide, now), "\t"))
	}
	return w.Flush()
}

// older lists the connections that end when their pods turn STRICT, as far as they
// are told one by one.
func older(out io.Writer, list []v1alpha1.Workload) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAMESPACE\tNAME\tLOCAL\tREMOTE")
	for _, item := range list {
		for _, text := range item.Status.FirstOlderConnections {
			local, remote, _ := strings.Cut(text, " -> ")
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", item.Namespace, item.Name, local, remote)
		}
		if more := int(item.Status.OlderConnections) - len(item.Status.FirstOlderConnections); more > 0 {
			fmt.Fprintf(w, "%s\t%s\tand %d more\tguards in the dump of ztunnel on %s\n", item.Namespace, item.Name, more, item.Spec.Node)
		}
	}
	return w.Flush()
}

func row(w v1alpha1.Workload, wide bool, now time.Time) []string {
	address := "-"
	if len(w.Spec.Addresses) > 0 {
		address = w.Spec.Addresses[0]
	}
	cells := []string{
		w.Namespace, w.Name, address, dash(w.Spec.Node), dash(w.Spec.Waypoint), dash(string(w.Status.Protocol)),
		dash(w.Status.Summary), strconv.Itoa(int(w.Status.OlderConnections)), duration.HumanDuration(now.Sub(w.CreationTimestamp.Time)),
	}
	if wide {
		expires := "-"
		if w.Status.CertificateExpires != nil {
			expires = w.Status.CertificateExpires.UTC().Format(time.RFC3339)
		}
		cells = append(cells, dash(w.Spec.Identity), expires, dash(w.Status.CertificateSerial), dash(w.Status.ConfigVersion))
	}
	return cells
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
