// Package fault makes things die, go missing, come late or be malformed on the
// nodes of the lab, and says what it did.
//
//	fault.go       what a [Fault] is, and the list of all
//	process.go     ztunnel's process
//	cluster.go     the DaemonSet, the controller, the API server, a node's power
//	node.go        CNI, bpffs, disk
//	time.go        certificates and clocks
//	lab.go         the doors to the lab that they share
//
// Invariants: every injection is real, nothing is asked of Ambit to play it; and
// what was injected can be taken back, also after a failure half-way.
//
// What applications do meanwhile, and what is measured, is package trial's.
package fault

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

// Node is where faults strike; Other is the one at the connections' other end.
const (
	Node  = "n1"
	Other = "n2"
)

// System is Ambit's namespace.
const System = "ambit-system"

const (
	ztunnel    = "ztunnel"
	controller = "controller"
)

// settle bounds what takes seconds on an idle machine.
const settle = 2 * time.Minute

// Lab is the cluster that faults strike.
type Lab struct {
	Bed *testbed.Bed
	// Namespaces of the trial's applications, and Kept, a pod of each on Node that
	// a fault may restart.
	Namespaces []string
	Restarted  string

	replicas string // of the controller, before it was stopped

	mu   sync.Mutex
	dead map[string]func() // nodes whose ztunnel is kept dead, and how that ends; guarded by mu
}

func (l *Lab) kubectl(ctx context.Context, args ...string) error {
	_, err := l.Bed.Kubectl(ctx, args...)
	return err
}

func (l *Lab) system(ctx context.Context, args ...string) error {
	return l.kubectl(ctx, append([]string{"-n", System}, args...)...)
}

// shell runs a script on Node.
func (l *Lab) shell(ctx context.Context, script string) error {
	_, err := l.Bed.Machine(Node).Shell(ctx, script)
	return err
}

// killPoll is how soon a new process of ztunnel is killed again: before it does
// anything.
const killPoll = 20 * time.Millisecond

// KeepDead kills ztunnel of a node, and again whenever the kubelet starts it,
// until Revive.
func (l *Lab) KeepDead(node string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead[node] != nil {
		return nil
	}
	m := l.Bed.Machine(node)
	if _, err := m.Signal(ztunnel, syscall.SIGKILL); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			m.Signal(ztunnel, syscall.SIGKILL) // one that has just ended is no failure
			time.Sleep(killPoll)
		}
	}()
	if l.dead == nil {
		l.dead = map[string]func(){}
	}
	l.dead[node] = func() { cancel(); <-ended }
	return nil
}

// spare ends the killing.
func (l *Lab) spare() (nodes []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for node, stop := range l.dead {
		stop()
		nodes = append(nodes, node)
	}
	l.dead = nil
	return nodes
}

// Revive lets ztunnel live again on all nodes. The kubelet would start one that
// died so often only after minutes: a new pod is not made to wait.
func (l *Lab) Revive(ctx context.Context) error {
	for _, node := range l.spare() {
		if err := l.renew(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// renew replaces ztunnel's pod of a node by a new one, without waiting for it.
func (l *Lab) renew(ctx context.Context, node string) error {
	return l.system(ctx, "delete", "pod", "-l", "app=ztunnel", "--field-selector", "spec.nodeName="+node, "--grace-period=0", "--force", "--wait=false")
}

// Renew replaces all of Ambit's pods: an image that was loaded under the same name
// is what runs then, and nothing has died yet.
func (l *Lab) Renew(ctx context.Context) error {
	if err := l.system(ctx, "delete", "pods", "--all", "--grace-period=0", "--force"); err != nil {
		return err
	}
	return l.Settle(ctx)
}

// Forgive has the kubelet forget how often ztunnel died: it would start it ever
// later, and the next fault would be measured with the last one's pauses.
func (l *Lab) Forgive(ctx context.Context) error {
	out, err := l.Bed.Kubectl(ctx, "-n", System, "get", "pods", "-l", "app=ztunnel", "-o", `jsonpath={range .items[*]}{.spec.nodeName} {.status.containerStatuses[0].restartCount}{"\n"}{end}`)
	if err != nil {
		return err
	}
	renewed := false
	for line := range strings.Lines(out) {
		if node, restarts, _ := strings.Cut(strings.TrimSpace(line), " "); node != "" && restarts != "0" {
			if err := l.renew(ctx, node); err != nil {
				return err
			}
			renewed = true
		}
	}
	if !renewed {
		return nil
	}
	return l.Settle(ctx)
}

// Settle returns when all of Ambit is up again, and nothing else of it is.
func (l *Lab) Settle(ctx context.Context) error {
	err := testbed.Eventually(ctx, settle, func(ctx context.Context) error {
		return l.system(ctx, "rollout", "status", "deployment/"+controller, "--timeout=20s")
	})
	if err != nil {
		return fmt.Errorf("wait for the controller: %w", err)
	}
	if err := testbed.Eventually(ctx, settle, l.ztunnelsReady); err != nil {
		return fmt.Errorf("wait for ztunnel: %w", err)
	}
	return l.endFormer(ctx)
}

// ztunnelsReady asks whether the latest ztunnel is ready on every node, whatever becomes of former ones.
func (l *Lab) ztunnelsReady(ctx context.Context) error {
	want, err := l.Bed.Kubectl(ctx, "-n", System, "get", "daemonset", ztunnel, "-o",
		`go-template={{if eq .metadata.generation .status.observedGeneration}}{{.status.desiredNumberScheduled}} {{index .metadata.annotations "deprecated.daemonset.template.generation"}}{{end}}`)
	if err != nil {
		return err
	}
	nodes, latest, ok := strings.Cut(strings.TrimSpace(want), " ")
	if !ok {
		return errors.New("the DaemonSet has changed just now")
	}
	pods, err := l.Bed.Kubectl(ctx, "-n", System, "get", "pods", "-l", "app="+ztunnel, "-o",
		`go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{index .metadata.labels "pod-template-generation"}}{{range .status.conditions}}{{if eq .type "Ready"}} {{.status}}{{end}}{{end}}{{"\n"}}{{end}}{{end}}`)
	if err != nil {
		return err
	}
	ready := 0
	for line := range strings.Lines(pods) {
		if strings.TrimSpace(line) == latest+" True" {
			ready++
		}
	}
	if strconv.Itoa(ready) != nodes {
		return fmt.Errorf("ztunnel is ready on %d nodes of %s", ready, nodes)
	}
	return nil
}

// endFormer ends ztunnels that were told to end and carry connections still: the next fault is not about them.
func (l *Lab) endFormer(ctx context.Context) error {
	pods, err := l.Bed.Kubectl(ctx, "-n", System, "get", "pods", "-l", "app="+ztunnel, "-o",
		"go-template={{range .items}}{{if .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}{{end}}")
	if err != nil || strings.TrimSpace(pods) == "" {
		return err
	}
	return l.system(ctx, append([]string{"delete", "pod", "--grace-period=0", "--force", "--ignore-not-found"}, strings.Fields(pods)...)...)
}

// podOf is the UID of a pod.
func (l *Lab) podUID(ctx context.Context, namespace, pod string) (string, error) {
	out, err := l.Bed.Kubectl(ctx, "-n", namespace, "get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
	return strings.TrimSpace(out), err
}
