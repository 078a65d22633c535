//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

const (
	modeLabel = "ambit.mesh/dataplane-mode"
	// settle bounds what takes a second or two on an idle machine.
	settle = 90 * time.Second
)

// TestMain installs Ambit as a user would, before any test.
func TestMain(m *testing.M) {
	if err := install(); err != nil {
		fmt.Fprintln(os.Stderr, "install Ambit:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func install() error {
	bed, err := testbed.Find()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := bed.Command(ctx, "ambit", "install")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}

// place is a namespace of one test, and the doors to the cluster.
type place struct {
	*testing.T
	bed *testbed.Bed
	// name of the namespace.
	name string
}

// newPlace makes a namespace. With labels such as "ambit.mesh/dataplane-mode=ambient".
func newPlace(t *testing.T, name string, labels ...string) *place {
	t.Helper()
	bed, err := testbed.Find()
	if err != nil {
		t.Fatal(err)
	}
	p := &place{T: t, bed: bed, name: name}
	p.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait")
	p.kubectl("create", "namespace", name)
	t.Cleanup(func() {
		if t.Failed() {
			p.tellState()
		}
		// The context of the test is over by now.
		ctx, cancel := context.WithTimeout(context.Background(), settle)
		defer cancel()
		if out, err := bed.Kubectl(ctx, "delete", "namespace", name, "--wait=false"); err != nil {
			t.Errorf("delete namespace %s: %v %s", name, err, out)
		}
		bed.Kubectl(ctx, "-n", name, "delete", "pods", "--all", "--grace-period=1", "--wait=false")
	})
	if len(labels) > 0 {
		p.label(labels...)
	}
	return p
}

// tellState logs what a failure is mostly understood by.
func (p *place) tellState() {
	ctx, cancel := context.WithTimeout(context.Background(), settle)
	defer cancel()
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"get", "workloads.ambit.mesh", "-A", "-o", "wide"},
		{"-n", p.name, "get", "events", "--sort-by=.lastTimestamp"},
		{"-n", "ambit-system", "logs", "daemonset/ztunnel", "--all-pods=true", "--prefix", "--tail=40"},
		{"-n", "ambit-system", "logs", "deployment/controller", "--tail=40"},
	} {
		out, err := p.bed.Kubectl(ctx, args...)
		p.Logf("kubectl %s\n%s%v", strings.Join(args, " "), out, err)
	}
}

// kubectl fails the test where kubectl fails.
func (p *place) kubectl(args ...string) string {
	p.Helper()
	out, err := p.bed.Kubectl(p.Context(), args...)
	if err != nil {
		p.Fatal(err)
	}
	return out
}

// in runs kubectl in the test's namespace.
func (p *place) in(args ...string) string {
	p.Helper()
	return p.kubectl(append([]string{"-n", p.name}, args...)...)
}

func (p *place) apply(manifests string) {
	p.Helper()
	if err := p.bed.Apply(p.Context(), p.name, []byte(manifests)); err != nil {
		p.Fatal(err)
	}
}

func (p *place) label(labels ...string) {
	p.Helper()
	p.kubectl(append([]string{"label", "namespace", p.name, "--overwrite"}, labels...)...)
}

// enrol labels the namespace and waits until the given pods are captured.
func (p *place) enrol(pods ...string) {
	p.Helper()
	p.label(modeLabel + "=ambient")
	p.captured(pods...)
}

// eventually fails the test unless ask succeeds in time.
func (p *place) eventually(what string, ask func() error) {
	p.Helper()
	p.within(settle, what, ask)
}

func (p *place) within(bound time.Duration, what string, ask func() error) {
	p.Helper()
	if err := testbed.Eventually(p.Context(), bound, func(context.Context) error { return ask() }); err != nil {
		p.Fatalf("%s: %v", what, err)
	}
}

// tool runs a one-shot client in a pod and returns what it printed.
func (p *place) tool(pod string, args ...string) (string, error) {
	out, err := p.bed.Tool(p.Context(), p.name, pod, args...)
	return strings.TrimSpace(out), err
}

// must is tool where it has to succeed.
func (p *place) must(pod string, args ...string) string {
	p.Helper()
	out, err := p.tool(pod, args...)
	if err != nil {
		p.Fatalf("%s in %s: %v", strings.Join(args, " "), pod, err)
	}
	return out
}

// ready waits until pods are.
func (p *place) ready(pods ...string) {
	p.Helper()
	for _, pod := range pods {
		p.in("wait", "--for=condition=Ready", "pod/"+pod, "--timeout=90s")
	}
}

// observed is a Workload's status.
type observed struct {
	State, Protocol, Reason, Summary string
}

func (p *place) workload(pod string) (observed, error) {
	out, err := p.bed.Kubectl(p.Context(), "-n", p.name, "get", "workloads.ambit.mesh", pod, "-o", "jsonpath={.status}")
	var o observed
	if err == nil {
		err = json.Unmarshal([]byte(out), &o)
	}
	return o, err
}

// captured waits until pods are captured and published so.
func (p *place) captured(pods ...string) {
	p.Helper()
	for _, pod := range pods {
		p.eventually(pod+" is captured", func() error {
			o, err := p.workload(pod)
			if err == nil && (o.State != "Captured" || o.Protocol != "HBONE") {
				err = fmt.Errorf("it is %+v", o)
			}
			return err
		})
	}
}

// released waits until a pod has no part in the mesh.
func (p *place) released(pods ...string) {
	p.Helper()
	for _, pod := range pods {
		p.eventually(pod+" is released", func() error {
			o, err := p.workload(pod)
			if err != nil && strings.Contains(err.Error(), "NotFound") {
				return nil
			}
			if err == nil && (o.State != "NotEnrolled" || o.Protocol == "HBONE") {
				err = fmt.Errorf("it is %+v", o)
			}
			return err
		})
	}
}

// ip returns a pod's address, of the first family by default.
func (p *place) ip(pod string, family ...int) string {
	p.Helper()
	index := 0
	if len(family) > 0 && family[0] == 6 {
		index = 1
	}
	return strings.TrimSpace(p.in("get", "pod", pod, "-o", fmt.Sprintf("jsonpath={.status.podIPs[%d].ip}", index)))
}

// ztunnel returns the name of the ztunnel pod of a node.
func (p *place) ztunnel(node string) string {
	p.Helper()
	all := p.ztunnels(node)
	if len(all) != 1 {
		p.Fatalf("ztunnels of %s: %q, want one", node, all)
	}
	return all[0]
}

// ztunnels are the pods of a node, of all if it is empty, that are not told to end.
func (p *place) ztunnels(node string) []string {
	p.Helper()
	args := []string{"-n", "ambit-system", "get", "pods", "-l", "app=ztunnel", "-o", "go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}{{end}}"}
	if node != "" {
		args = append(args, "--field-selector", "spec.nodeName="+node)
	}
	return strings.Fields(p.kubectl(args...))
}

// meshReady waits until the controller and every ztunnel are.
func (p *place) meshReady() {
	p.Helper()
	p.kubectl("-n", "ambit-system", "rollout", "status", "deployment/controller", "--timeout=120s")
	p.kubectl("-n", "ambit-system", "rollout", "status", "daemonset/ztunnel", "--timeout=120s")
}
