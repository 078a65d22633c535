//go:build cluster

package main

import (
	"bytes"
	"fmt"
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
