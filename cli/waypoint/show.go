package waypoint

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/ambit-mesh/ambit/cli/kube"
)

// PrintList prints the waypoints of a namespace, or of all: a table, or json.
func PrintList(ctx context.Context, cluster *kube.Cluster, namespace, output string, out io.Writer) error {
	views, err := List(ctx, cluster, namespace)
	if err != nil {
		return err
	}
	switch output {
	case "json":
		return printJSON(out, views)
	case "":
		return printTable(out, views, time.Now())
	}
	return fmt.Errorf("--output %q: only json is known", output)
}

// PrintStatus prints all there is to say of one waypoint.
func PrintStatus(ctx context.Context, cluster *kube.Cluster, namespace, name, output string, out io.Writer) error {
	v, err := find(ctx, cluster, namespace, name)
	if err != nil {
		return err
	}
	switch output {
	case "json":
		return printJSON(out, v)
	case "":
		return printView(out, v)
	}
	return fmt.Errorf("--output %q: only json is known", output)
}

func printJSON(out io.Writer, what any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(what)
}

func printTable(out io.Writer, views []*View, now time.Time) error {
	if len(views) == 0 {
		_, err := fmt.Fprintln(out, "no waypoints; `ambit waypoint apply -n NAMESPACE` makes one")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAMESPACE\tNAME\tFOR\tNAMESPACES\tIN FORCE\tPROGRAMMED\tADDRESS\tAGE")
	for _, v := range views {
		address := "-"
		if len(v.Addresses) > 0 {
			address = v.Addresses[0]
		}
		programmed := "False"
		if v.Programmed {
			programmed = "True"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d/%d\t%s\t%s\t%s\n", v.Namespace, v.Name, v.For, v.Namespaces,
			v.InForce(), len(v.Bound), programmed, address, duration.HumanDuration(v.age(now)))
	}
	return w.Flush()
}

func printView(out io.Writer, v *View) error {
	addresses := strings.Join(v.Addresses, ", ")
	if addresses == "" {
		addresses = "none yet"
	}
	fmt.Fprintf(out, "Waypoint %s/%s\n", v.Namespace, v.Name)
	fmt.Fprintf(out, "  for          %s\n  namespaces   %s\n  addresses    %s\n\n", v.For, v.Namespaces, addresses)

	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	if len(v.Conditions) == 0 {
		fmt.Fprintln(w, "No controller has said anything of it: see `ambit check`")
	} else {
		fmt.Fprintln(w, "CONDITION\tSTATUS\tREASON\tMESSAGE")
		for _, c := range v.Conditions {
			status := string(c.Status)
			if c.ObservedGeneration < v.generation {
				status += " (of an older version)"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.Type, status, c.Reason, c.Message)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	if len(v.Bound) == 0 {
		_, err := fmt.Fprintf(out, "Nothing is bound to it: %s\n", v.bindCommand())
		return err
	}
	w = tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "BOUND\tBY LABEL OF\tIN FORCE\tSTATE\tMESSAGE")
	for _, b := range v.Bound {
		inForce := "no"
		if b.InForce {
			inForce = "yes"
		}
		fmt.Fprintf(w, "%s %s/%s\t%s\t%s\t%s\t%s\n", b.Kind, b.Namespace, b.Name, b.By, inForce, b.State, b.Message)
	}
	return w.Flush()
}
