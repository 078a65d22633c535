// Package authority shows what signs for the mesh, which roots it trusts and what is
// revoked, and asks the controller to change that.
//
//	authority.go  roots and issuer
//	revoke.go     what is revoked
//
// The controller writes what there is into the ConfigMap ambit-ca-root; a request
// is an annotation on the Secret ambit-ca-state, which the controller takes off
// when it has begun. What is revoked is in the ConfigMap ambit-ca-revoked; a
// request is a field there, which the controller takes out and answers. Nothing
// here reads a key.
package authority

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/cli/kube"
)

const (
	configMap   = "ambit-ca-root"
	statusKey   = "status.json"
	stateSecret = "ambit-ca-state"
	pluggedIn   = "plug-in"
	annotation  = "ambit.mesh/rotate-" // and what
)

// Status as the controller writes it.
type Status struct {
	Roots []struct {
		Fingerprint, Subject, Phase string
		Since, NotAfter             time.Time
	}
	Issuer struct {
		Origin, Subject, Serial, Root string
		NotAfter                      time.Time
	}
	Waiting []string
	Problem *Problem
}

// Problem that the controller has found.
type Problem struct{ Code, Object, Field, Detail, Fix string }

// Read returns the status, and the text that it was read from.
func Read(ctx context.Context, cluster *kube.Cluster) (Status, string, error) {
	found, err := cluster.Typed.CoreV1().ConfigMaps(install.Namespace).Get(ctx, configMap, metav1.GetOptions{})
	if err != nil {
		return Status{}, "", fmt.Errorf("read ConfigMap %s/%s: %w", install.Namespace, configMap, err)
	}
	text := found.Data[statusKey]
	if text == "" {
		return Status{}, "", fmt.Errorf("ConfigMap %s/%s has no %s: the controller writes it; see its log", install.Namespace, configMap, statusKey)
	}
	var s Status
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return Status{}, "", fmt.Errorf("read %s of ConfigMap %s/%s: %w", statusKey, install.Namespace, configMap, err)
	}
	return s, text, nil
}

// Print shows the status as a table, or as json.
func Print(ctx context.Context, cluster *kube.Cluster, output string, out io.Writer) error {
	if output != "" && output != "json" {
		return fmt.Errorf("--output %q: only json is known", output)
	}
	s, text, err := Read(ctx, cluster)
	if err != nil {
		return err
	}
	if output == "json" {
		return printJSON(ctx, cluster, text, out)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ROOT\tPHASE\tSINCE\tEXPIRES\tSUBJECT")
	for _, r := range s.Roots {
		fmt.Fprintf(table, "%.16s\t%s\t%s\t%s\t%s\n", r.Fingerprint, r.Phase, r.Since.Format(time.RFC3339), r.NotAfter.Format(time.DateOnly), r.Subject)
	}
	fmt.Fprintf(table, "\nISSUER\tORIGIN\tROOT\tEXPIRES\tSUBJECT\n%.16s\t%s\t%.16s\t%s\t%s\n",
		s.Issuer.Serial, s.Issuer.Origin, s.Issuer.Root, s.Issuer.NotAfter.Format(time.DateOnly), s.Issuer.Subject)
	if err := table.Flush(); err != nil {
		return err
	}
	if len(s.Waiting) > 0 {
		fmt.Fprintf(out, "\nwaiting for: %v\n", s.Waiting)
	}
	if p := s.Problem; p != nil {
		p.print(out)
	}
	return printRevocations(ctx, cluster, out)
}

func (p Problem) print(out io.Writer) {
	fmt.Fprintf(out, "\nproblem: %s: %s %s: %s\nwhat to do: %s\n", p.Code, p.Object, p.Field, p.Detail, p.Fix)
}

// Rotate asks for another root or intermediate. It refuses what the controller would
// not do.
func Rotate(ctx context.Context, cluster *kube.Cluster, what string) error {
	now, _, err := Read(ctx, cluster)
	if err != nil {
		return err
	}
	if err := now.mayRotate(what); err != nil {
		return err
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:"asked"}}}`, annotation+what)
	_, err = cluster.Typed.CoreV1().Secrets(install.Namespace).Patch(ctx, stateSecret, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("ask for another %s: annotate Secret %s/%s: %w", what, install.Namespace, stateSecret, err)
	}
	return nil
}

// mayRotate says why nothing would come of asking.
func (s Status) mayRotate(what string) error {
	missing := s.Problem != nil && s.Problem.Code == "PluginMissing"
	if s.Issuer.Origin == pluggedIn && !(what == "root" && missing) {
		return fmt.Errorf("the issuer is plugged in: put another one into Secret %s/ambit-ca-plugin; or delete that, and ask for another root, to change to one that the mesh manages itself", install.Namespace)
	}
	for _, r := range s.Roots {
		if what == "root" && r.Phase == "Announced" {
			return fmt.Errorf("another root is on its way already, since %s: it signs once these have acknowledged it: %v", r.Since.Format(time.RFC3339), s.Waiting)
		}
	}
	return nil
}
