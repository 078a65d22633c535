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

// startPatience is the promise: from built binaries to three Ready nodes.
const startPatience = 30 * time.Second

// TestClusterLifecycle runs a cluster of its own name, beside whatever other
// cluster is up, through all that can happen to it.
func TestClusterLifecycle(t *testing.T) {
	under := newLab(t)
	before := under.leftovers()
	if len(before) > 0 {
		t.Fatalf("another run left %v", before)
	}
	under.run("build")

	for _, step := range []struct {
		name string
		test func(t *testing.T, lab *lab)
	}{
		{"a crash half-way is cleaned up", crashHalfWay},
		{"up", startsInTime},
		{"up again changes nothing", upAgain},
		{"every pod reaches every pod, Service and NodePort in both families", traffic},
		{"a node's processes live below its own cgroup root", confinement},
		{"kubectl logs and exec work through the forwarder", kubeletThroughForwarder},
		{"a power cut is silent and is noticed", powerCut},
		{"a node that was off has its disk, and nothing else", powerOnAgain},
		{"reboot", rebootNode},
		{"the control plane survives a power cut", rebootControlPlane},
		{"down leaves nothing", downLeavesNothing},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(t, under.of(t)) }) {
			return
		}
	}
}

func crashHalfWay(t *testing.T, lab *lab) {
	for _, after := range []time.Duration{30 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond, 3 * time.Second} {
		up := lab.command("up")
		if err := up.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		up.Process.Kill()
		up.Wait()
		lab.run("down")
		if left := lab.leftovers(); len(left) > 0 {
			t.Errorf("killed after %s, down left %v", after, left)
		}
	}
}

func startsInTime(t *testing.T, lab *lab) {
	began := time.Now()
	up := lab.run("up")
	t.Logf("up:\n%s", up)
	for line := range strings.Lines(up) {
		var seconds float64
		if strings.Contains(line, "nodes Ready") {
			if _, err := fmt.Sscanf(line, "[%fs]", &seconds); err != nil {
				t.Fatal(err)
			}
			if seconds > startPatience.Seconds() {
				t.Errorf("nodes Ready after %.1f s, want less than %s", seconds, startPatience)
			}
		}
	}
	t.Logf("up with DNS took %s", time.Since(began))
	ready := lab.kubectl("get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {.spec.podCIDRs} {end}`)
	want := `n1=True ["10.244.1.0/24","fd00:10:244:1::/64"] n2=True ["10.244.2.0/24","fd00:10:244:2::/64"] n3=True ["10.244.3.0/24","fd00:10:244:3::/64"] `
	if ready != want {
		t.Errorf("nodes %q, want %q", ready, want)
	}
}

func upAgain(t *testing.T, lab *lab) {
	before := lab.inits()
	lab.run("up")
	if after := lab.inits(); !slices.Equal(before, after) {
		t.Errorf("machines were %v, are %v", before, after)
	}
}

const probes = `
apiVersion: v1
kind: Namespace
metadata: {name: probe}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: probe, namespace: probe}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: probe
        image: ` + probeImage + `
        imagePullPolicy: Never
        args: [serve]
        readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: probe, namespace: probe}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: probe}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
`

func traffic(t *testing.T, lab *lab) {
	lab.run("load", filepath.Join(lab.layout.cache(), "images/probe.tar"))
	lab.apply(probes)
	lab.kubectl("rollout", "status", "--namespace=probe", "daemonset/probe", "--timeout=60s")

	service := strings.Fields(lab.kubectl("get", "service", "--namespace=probe", "probe", "-o", "jsonpath={.spec.clusterIPs[0]} [{.spec.clusterIPs[1]}]"))
	for _, from := range nodes() {
		for _, to := range nodes() {
			addresses := lab.podAddresses(to)
			for _, address := range addresses {
				if answer := lab.probe(from, "get", "http://"+address+":8080"); !strings.HasPrefix(answer, lab.pod(to)+" ") {
					t.Errorf("%s to the pod of %s at %s: %s", from.name, to.name, address, answer)
				}
			}
			lab.probe(from, "get", fmt.Sprintf("http://%s:30080", to.address4()))
			lab.probe(from, "get", fmt.Sprintf("http://[%s]:30080", to.address6()))
		}
		for _, address := range service {
			lab.probe(from, "get", "http://"+address)
		}
		lab.probe(from, "get", "http://probe.probe")
		got := strings.Fields(lab.probe(from, "lookup", "probe.probe"))
		want := []string{service[0], strings.Trim(service[1], "[]")}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s resolves probe.probe to %v, want %v", from.name, got, want)
		}
		if got := lab.probe(from, "lookup", "outside.example"); !strings.Contains(got, outside4) || !strings.Contains(got, outside6) {
			t.Errorf("%s resolves outside.example to %s", from.name, got)
		}
	}
}

func confinement(t *testing.T, lab *lab) {
	for _, m := range machines() {
		group := lab.layout.machineGroup(m)
		pids, err := processes(group)
		if err != nil {
			t.Fatal(err)
		}
		containers := 0
		for _, pid := range pids {
			content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
			if err != nil {
				continue // it has ended since
			}
			for line := range strings.Lines(string(content)) {
				if path, ok := strings.CutPrefix(line, "0::"); ok {
					if !strings.HasPrefix(path, "/"+group+"/") {
						t.Errorf("process %d of %s is in cgroup %s", pid, m.name, path)
					}
					if strings.HasPrefix(path, "/"+group+"/kubepods/") {
						containers++
					}
				}
			}
		}
		if m.isNode() && containers == 0 {
			t.Errorf("no process of a pod of %s is in its cgroup", m.name)
		}
		unified := unifiedMount(t)
		inside := lab.run("exec", m.name, "stat", "--format=%i", unified)
		outside := strings.Fields(string(mustOutput(t, "stat", "--format=%i", filepath.Join(unified, group))))[0]
		if strings.TrimSpace(inside) != outside {
			t.Errorf("cgroup2's root inside %s is inode %s, want its own group, %s", m.name, inside, outside)
		}
	}
}

func kubeletThroughForwarder(t *testing.T, lab *lab) {
	lab.kubectl("logs", "--namespace=probe", lab.pod(nodes()[0]))
	if answer := lab.probe(nodes()[0], "get", "http://127.0.0.1:8080"); answer == "" {
		t.Error("no output of a command in a pod")
	}
}

// marks are written before the power cut of n2.
const marks = "touch /etc/mark /var/lib/mark /opt/mark /run/mark /tmp/mark && mkdir /sys/fs/bpf/mark"

func powerCut(t *testing.T, lab *lab) {
	n1, n2 := nodes()[0], nodes()[1]
	lab.run("exec", "n2", "sh", "-c", marks)
	target := lab.podAddresses(n2)[0] + ":8080"
	holder := exec.Command(lab.layout.binary("kubectl"), "--kubeconfig="+lab.layout.kubeconfig(), "exec", "--namespace=probe", lab.pod(n1), "--", "/probe", "hold", target)
	var held bytes.Buffer
	holder.Stdout = &held
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // for the connection to stand
	lab.run("power-off", "n2")
	if err := holder.Wait(); err != nil || held.String() != "connected\nsilent\n" {
		t.Errorf("a connection to the node that was cut: %q, %v", held.String(), err)
	}
	if netnsExists(lab.layout.netns("n2")) {
		t.Error("the network namespace of n2 has its name still")
	}
	lab.kubectl("wait", "--for=condition=Ready=Unknown", "node/n2", "--timeout=60s")

	// An image that is loaded while a node is off is there once it is on.
	other := filepath.Join(t.TempDir(), "other.tar")
	if err := writeImage(other, "cluster.invalid/other:1", lab.layout.binary("pause")); err != nil {
		t.Fatal(err)
	}
	lab.run("load", other)
}

func powerOnAgain(t *testing.T, lab *lab) {
	lab.run("power-on", "n2")
	got := lab.run("exec", "n2", "sh", "-c", "ls -d /etc/mark /var/lib/mark /opt/mark /run/mark /tmp/mark /sys/fs/bpf/mark 2>/dev/null; true")
	if want := "/etc/mark\n/opt/mark\n/var/lib/mark\n"; got != want {
		t.Errorf("of the marks there are\n%swant\n%s", got, want)
	}
	if images := lab.run("exec", "n2", "ctr", "images", "list", "--quiet"); !strings.Contains(images, "cluster.invalid/other:1") {
		t.Errorf("n2 has the images\n%s", images)
	}
	lab.podsAnswer()
}

func rebootNode(t *testing.T, lab *lab) {
	before := lab.inits()
	began := time.Now()
	lab.run("reboot", "n3")
	t.Logf("reboot of n3 until Ready took %s", time.Since(began))
	after := lab.inits()
	if before[3] == after[3] || !slices.Equal(before[:3], after[:3]) {
		t.Errorf("machines were %v, are %v", before, after)
	}
	lab.podsAnswer()
	t.Logf("reboot of n3 until its pod answers took %s", time.Since(began))
}

func rebootControlPlane(t *testing.T, lab *lab) {
	lab.run("reboot", "cp")
	lab.kubectl("get", "namespace", "probe")
	// Its controllers work again: a Deployment of theirs grows.
	lab.kubectl("scale", "--namespace=kube-system", "deployment/coredns", "--replicas=3")
	lab.kubectl("rollout", "status", "--namespace=kube-system", "deployment/coredns", "--timeout=60s")
}

func downLeavesNothing(t *testing.T, lab *lab) {
	lab.run("forward", "--in", "n1", "0", dnsService4+":9153")
	lab.remember()
	began := time.Now()
	lab.run("down")
	t.Logf("down took %s", time.Since(began))
	if left := lab.leftovers(); len(left) > 0 {
		t.Errorf("down left %v", left)
	}
	lab.run("down") // of nothing
}

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
