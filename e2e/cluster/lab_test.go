//go:build cluster

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// lab is the cluster under test.
type lab struct {
	t          *testing.T
	program    string
	layout     layout
	env        []string
	namespaces []string // of its processes, remembered while they lived
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l, err := findLayout()
	if err != nil {
		t.Fatal(err)
	}
	l.name = "ambit-lifecycle"
	l.state = filepath.Join(t.TempDir(), "state")
	program := filepath.Join(t.TempDir(), "cluster")
	if output, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, output)
	}
	lab := &lab{t: t, program: program, layout: l, env: append(os.Environ(),
		"AMBIT_CLUSTER_NAME="+l.name, "AMBIT_CLUSTER_DIR="+l.state)}
	t.Cleanup(func() { lab.command("down").Run() })
	return lab
}

// of is the same lab, reporting to a subtest.
func (lab *lab) of(t *testing.T) *lab {
	lab.t = t
	return lab
}

func (lab *lab) command(args ...string) *exec.Cmd {
	cmd := exec.Command(lab.program, args...)
	cmd.Env = lab.env
	return cmd
}

func (lab *lab) run(args ...string) string {
	lab.t.Helper()
	return lab.output(lab.command(args...))
}

func (lab *lab) kubectl(args ...string) string {
	lab.t.Helper()
	return lab.output(exec.Command(lab.layout.binary("kubectl"), append([]string{"--kubeconfig=" + lab.layout.kubeconfig()}, args...)...))
}

func (lab *lab) apply(manifest string) {
	lab.t.Helper()
	cmd := exec.Command(lab.layout.binary("kubectl"), "--kubeconfig="+lab.layout.kubeconfig(), "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	lab.output(cmd)
}

func (lab *lab) output(cmd *exec.Cmd) string {
	lab.t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		lab.t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, stdout, stderr.String())
	}
	return string(stdout)
}

// pod is the name of the probe's pod on a node.
func (lab *lab) pod(on machine) string {
	lab.t.Helper()
	return lab.kubectl("get", "pods", "--namespace=probe", "--field-selector=spec.nodeName="+on.name, "-o", "jsonpath={.items[0].metadata.name}")
}

// podAddresses are both addresses of the probe's pod on a node, as a URL has
// them.
func (lab *lab) podAddresses(on machine) []string {
	lab.t.Helper()
	addresses, ok := lab.findPodAddresses(on)
	if !ok {
		lab.t.Fatalf("pod of %s has addresses %v", on.name, addresses)
	}
	return addresses
}

// findPodAddresses fails while the pod is starting.
func (lab *lab) findPodAddresses(on machine) (addresses []string, ok bool) {
	lab.t.Helper()
	addresses = strings.Fields(lab.kubectl("get", "pod", "--namespace=probe", lab.pod(on), "-o", "jsonpath={.status.podIPs[*].ip}"))
	if len(addresses) != 2 {
		return addresses, false
	}
	addresses[1] = "[" + addresses[1] + "]"
	return addresses, true
}

// probe runs the probe's client in the pod of a node.
func (lab *lab) probe(from machine, args ...string) string {
	lab.t.Helper()
	return lab.kubectl(append([]string{"exec", "--namespace=probe", lab.pod(from), "--", "/probe"}, args...)...)
}

// podsAnswer waits until the pods of all nodes are reached from n1: after a
// power cut they need a moment to be started again.
func (lab *lab) podsAnswer() {
	lab.t.Helper()
	from := lab.pod(nodes()[0])
	err := waitFor("every pod to answer", time.Minute, func() bool {
		for _, to := range nodes() {
			addresses, ok := lab.findPodAddresses(to)
			if !ok {
				return false
			}
			for _, address := range addresses {
				get := exec.Command(lab.layout.binary("kubectl"), "--kubeconfig="+lab.layout.kubeconfig(),
					"exec", "--namespace=probe", from, "--", "/probe", "get", "http://"+address+":8080")
				answer, err := get.Output()
				if err != nil || !strings.HasPrefix(string(answer), lab.pod(to)+" ") {
					return false
				}
			}
		}
		return true
	})
	if err != nil {
		lab.t.Error(err)
	}
}

// inits are the first processes of all machines.
func (lab *lab) inits() []int {
	var pids []int
	for _, m := range machines() {
		pid, _ := initPID(lab.layout, m)
		pids = append(pids, pid)
	}
	return pids
}

// remember notes the namespaces that must be gone after down.
func (lab *lab) remember() {
	pids, err := processes(lab.layout.cgroup())
	if err != nil {
		lab.t.Fatal(err)
	}
	host := namespacesOf(os.Getpid())
	for _, pid := range pids {
		for _, namespace := range namespacesOf(pid) {
			if !slices.Contains(host, namespace) && !slices.Contains(lab.namespaces, namespace) {
				lab.namespaces = append(lab.namespaces, namespace)
			}
		}
	}
	if len(lab.namespaces) < 2*len(machines()) {
		lab.t.Errorf("only namespaces %v", lab.namespaces)
	}
}

// namespacesOf names the network and mount namespaces of a process.
func namespacesOf(pid int) []string {
	var found []string
	for _, kind := range []string{"net", "mnt"} {
		if link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind)); err == nil {
			found = append(found, link)
		}
	}
	return found
}

// leftovers lists everything of the lab that is on this machine.
func (lab *lab) leftovers() []string {
	var left []string
	names, err := (&cluster{layout: lab.layout}).ownNetns()
	if err != nil {
		lab.t.Fatal(err)
	}
	left = append(left, names...)
	all, err := readHierarchies()
	if err != nil {
		lab.t.Fatal(err)
	}
	for _, h := range all {
		if path := filepath.Join(h.mount, lab.layout.cgroup()); exists(path) {
			left = append(left, path)
		}
	}
	if exists(lab.layout.state) {
		left = append(left, lab.layout.state)
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		lab.t.Fatal(err)
	}
	for _, process := range processes {
		command, _ := os.ReadFile(filepath.Join(process, "cmdline"))
		if bytes.Contains(command, []byte(lab.layout.name)) && !bytes.Contains(command, []byte("-test.")) {
			left = append(left, process+" "+string(command))
		}
		// A namespace can also be held by a mount of its file.
		mounts, _ := os.ReadFile(filepath.Join(process, "mountinfo"))
		if bytes.Contains(mounts, []byte(lab.layout.name)) || bytes.Contains(mounts, []byte(lab.layout.state)) {
			left = append(left, process+"/mountinfo")
		}
		for _, kind := range []string{"net", "mnt"} {
			link, _ := os.Readlink(filepath.Join(process, "ns", kind))
			if slices.Contains(lab.namespaces, link) {
				left = append(left, process+" in "+link)
			}
		}
	}
	return left
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func unifiedMount(t *testing.T) string {
	t.Helper()
	all, err := readHierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		if h.v2 {
			return h.mount
		}
	}
	t.Fatal("no cgroup2")
	return ""
}

func mustOutput(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	output, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return output
}
