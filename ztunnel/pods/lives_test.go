package pods

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// TestLives plays the lives of pods: every file in testdata/lives is one. The
// commands are the methods of player that begin with "do".
func TestLives(t *testing.T) {
	files, err := filepath.Glob("testdata/lives/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			t.Parallel()
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p := &player{world: newWorld(t)}
			number := 0
			for line := range strings.Lines(string(script)) {
				number++
				if words := strings.Fields(line); len(words) > 0 && !strings.HasPrefix(words[0], "#") {
					p.at = fmt.Sprintf("line %d: %s", number, strings.TrimSpace(line))
					p.play(words[0], words[1:])
				}
			}
		})
	}
}

type player struct {
	*world
	at string
}

func (p *player) play(command string, args []string) {
	p.t.Helper()
	commands := map[string]func([]string){
		"namespace": p.doNamespace, "pod": p.doPod, "delete": p.doDelete, "netns": p.doNetNS, "rmnetns": p.doRemoveNetNS,
		"start": func([]string) { p.start() }, "stop": func([]string) { p.stop() }, "api": p.doAPI,
		"add": p.doAdd, "del": p.doDel, "release": func(a []string) { p.pods.Release(uid(a[0]), p.since(uid(a[0]))) },
		"stale-release": func(a []string) { p.pods.Release(uid(a[0]), p.since(uid(a[0])).Add(-time.Second)) },
		"break":         p.doBreak, "hang": p.doHang, "retry": func([]string) { p.pods.Retry() },
		"expect": p.doExpect, "never": p.doNever, "captured": p.doCaptured, "dns": p.doDNS, "calls": p.doCalls, "pinned": p.doPinned,
		"ready": p.doReady, "gate": p.doGate, "lose": p.doLose, "damage": p.doDamage, "reboot": p.doReboot, "ungated": p.doUngated, "left": p.doLeft,
	}
	do, ok := commands[command]
	if !ok {
		p.t.Fatalf("%s: unknown command", p.at)
	}
	do(args)
}

// since is when a pod came into the state that it is in.
func (p *player) since(uid string) time.Time {
	for _, status := range p.pods.Statuses() {
		if status.UID == uid {
			return status.Since
		}
	}
	return time.Time{}
}

func uid(pod string) string { return strings.Replace(pod, "/", "-", 1) }

// options splits key=value words from plain ones.
func options(args []string) (plain []string, named map[string]string) {
	named = map[string]string{}
	for _, arg := range args {
		if key, value, ok := strings.Cut(arg, "="); ok {
			named[key] = value
		} else {
			plain = append(plain, arg)
		}
	}
	return plain, named
}

// namespace NAME [MODE]
func (p *player) doNamespace(args []string) {
	p.label(args[0], strings.Join(args[1:], ""))
}

// pod NS/NAME [ip=IP,IP] [mode=MODE] [dns=CAPTURE] [phase=PHASE] [node=NODE] [seen=AGO] [hostnetwork] [deleting]
func (p *player) doPod(args []string) {
	plain, named := options(args)
	namespace, name, _ := strings.Cut(plain[0], "/")
	pod := p.pod(namespace, name)
	for _, flag := range plain[1:] {
		switch flag {
		case "hostnetwork":
			pod.Spec.HostNetwork = true
		case "deleting":
			now := metav1.Now()
			pod.DeletionTimestamp, pod.Finalizers = &now, []string{"test/kept"}
		default:
			p.t.Fatalf("%s: unknown flag %s", p.at, flag)
		}
	}
	for key, value := range named {
		switch key {
		case "ip":
			pod.Status.PodIPs = nil
			for ip := range strings.SplitSeq(value, ",") {
				pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: ip})
			}
		case "mode":
			pod.Labels = map[string]string{DataplaneModeLabel: value}
		case "dns":
			pod.Annotations = map[string]string{DNSCaptureAnnotation: value}
		case "phase":
			pod.Status.Phase = corev1.PodPhase(value)
		case "node":
			pod.Spec.NodeName = value
		case "seen":
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{
				Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(p.ago(value))},
			}}}
		default:
			p.t.Fatalf("%s: unknown option %s", p.at, key)
		}
	}
	p.put(pod)
}

func (p *player) ago(text string) time.Time {
	d, err := time.ParseDuration(text)
	if err != nil {
		p.t.Fatalf("%s: %v", p.at, err)
	}
	return time.Now().Add(-d)
}

func (p *player) doDelete(args []string) {
	namespace, name, _ := strings.Cut(args[0], "/")
	if err := p.client.CoreV1().Pods(namespace).Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
		p.t.Fatalf("%s: %v", p.at, err)
	}
}

// netns NAME IP... [age=AGO]
func (p *player) doNetNS(args []string) {
	plain, named := options(args)
	created := time.Now()
	if age, ok := named["age"]; ok {
		created = p.ago(age)
	}
	var ips []netip.Addr
	for _, ip := range plain[1:] {
		ips = append(ips, netip.MustParseAddr(ip))
	}
	p.namespaces.add("/run/netns/"+plain[0], created, ips)
}

func (p *player) doRemoveNetNS(args []string) { p.namespaces.remove("/run/netns/" + args[0]) }

// api up|down
func (p *player) doAPI(args []string) { p.apiDown.Store(args[0] == "down") }

// reboot: sandboxes and pins are gone, and files are not.
func (p *player) doReboot([]string) {
	p.namespaces.mu.Lock()
	clear(p.namespaces.all)
	p.namespaces.mu.Unlock()
	p.dataplane.mu.Lock()
	defer p.dataplane.mu.Unlock()
	clear(p.dataplane.pins)
}

// ungated NS/NAME...: which pods are said to have run uncaptured, soon.
func (p *player) doUngated(args []string) {
	p.t.Helper()
	p.eventually(p.at, func() bool {
		var named []string
		for _, problem := range p.pods.Problems() {
			if rest, ok := strings.CutPrefix(problem, cniproto.StartedUngated+": pod "); ok {
				name, _, _ := strings.Cut(rest, " ")
				named = append(named, name)
			}
		}
		slices.Sort(named)
		return slices.Equal(named, args)
	})
}

// left NETNS...: these are noted as left alone, and no others.
func (p *player) doLeft(args []string) {
	p.t.Helper()
	p.eventually(p.at, func() bool {
		p.dataplane.mu.Lock()
		defer p.dataplane.mu.Unlock()
		var left []string
		for _, path := range slices.Sorted(maps.Keys(p.dataplane.left)) {
			left = append(left, filepath.Base(path))
		}
		return slices.Equal(left, args)
	})
}

// damage FILE: a bit of a file of the state folder is another.
func (p *player) doDamage(args []string) {
	content, err := os.ReadFile(p.file(args[0]))
	if err != nil {
		p.t.Fatalf("%s: %v", p.at, err)
	}
	content[len(content)-3] ^= 1
	if err := os.WriteFile(p.file(args[0]), content, 0o600); err != nil {
		p.t.Fatalf("%s: %v", p.at, err)
	}
}

// lose FILE: a file of the state folder is gone.
func (p *player) doLose(args []string) {
	if err := os.Remove(p.file(args[0])); err != nil {
		p.t.Fatalf("%s: %v", p.at, err)
	}
}

func (p *player) ask(path string, request any) (status int, problem cniproto.Problem, reply cniproto.AddReply) {
	p.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.file("cni.sock"))
	}}}
	body, err := json.Marshal(request)
	if err != nil {
		p.t.Fatal(err)
	}
	var response *http.Response
	p.eventually("the socket answers", func() bool {
		response, err = client.Post("http://ztunnel"+path, "application/json", bytes.NewReader(body))
		return err == nil
	})
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	into := any(&problem)
	if response.StatusCode == http.StatusOK {
		into = &reply
	}
	if err := json.Unmarshal(content, into); err != nil {
		p.t.Fatalf("%s: %s: %v", p.at, content, err)
	}
	return response.StatusCode, problem, reply
}

// add NS/NAME NETNS IP... captured|open|CODE [uid=UID]: the CNI plugin asks.
func (p *player) doAdd(args []string) {
	plain, named := options(args)
	namespace, name, _ := strings.Cut(plain[0], "/")
	want := plain[len(plain)-1]
	request := cniproto.AddRequest{
		Namespace: namespace, Name: name, UID: uid(plain[0]), ContainerID: "sandbox-" + plain[1],
		NetNS: "/var/run/netns/" + plain[1], Addresses: plain[2 : len(plain)-1],
	}
	if other, ok := named["uid"]; ok {
		request.UID = other
	}
	status, problem, reply := p.ask(cniproto.PathAdd, request)
	got := problem.Code
	if status == http.StatusOK {
		got = "open"
		if reply.Captured {
			got = "captured"
		}
	}
	if got != want {
		p.t.Fatalf("%s: %s (%d %s)", p.at, got, status, problem.Message)
	}
}

// del NETNS: the CNI plugin tells that a sandbox ends.
func (p *player) doDel(args []string) {
	if status, problem, _ := p.ask(cniproto.PathDel, cniproto.DelRequest{NetNS: "/var/run/netns/" + args[0]}); status != http.StatusOK {
		p.t.Fatalf("%s: %d %+v", p.at, status, problem)
	}
}

// break NS/NAME [CODE]: its captures fail, with that code; without one they do not any more.
func (p *player) doBreak(args []string) {
	p.dataplane.mu.Lock()
	defer p.dataplane.mu.Unlock()
	delete(p.dataplane.broken, uid(args[0]))
	if len(args) > 1 {
		p.dataplane.broken[uid(args[0])] = codedFake{args[1]}
	}
}

// hang NS/NAME: its captures never return.
func (p *player) doHang(args []string) {
	p.dataplane.mu.Lock()
	defer p.dataplane.mu.Unlock()
	p.dataplane.hanging[uid(args[0])] = true
}

// expect NS/NAME STATE [REASON]: its status, soon. Absent: it has none.
func (p *player) doExpect(args []string) {
	p.t.Helper()
	p.eventually(p.at, func() bool {
		status, ok := p.status(uid(args[0]))
		if args[1] == "Absent" {
			return !ok
		}
		return ok && status.StateName == args[1] && (len(args) < 3 || strings.HasPrefix(status.Reason, args[2]+":"))
	})
}

// never NS/NAME STATE: it is not in that state for a while.
func (p *player) doNever(args []string) {
	p.t.Helper()
	for deadline := time.Now().Add(300 * time.Millisecond); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if status, ok := p.status(uid(args[0])); ok && status.StateName == args[1] {
			p.t.Fatalf("%s: it was, %s", p.at, status.Reason)
		}
	}
}

// captured NS/NAME NETNS|no: where the data plane has it, soon.
func (p *player) doCaptured(args []string) {
	p.t.Helper()
	want := "/run/netns/" + args[1]
	if args[1] == "no" {
		want = ""
	}
	p.eventually(p.at, func() bool { return p.dataplane.sandboxOf(uid(args[0])) == want })
}

// dns NS/NAME yes|no: whether a captured pod's DNS is.
func (p *player) doDNS(args []string) {
	p.t.Helper()
	p.dataplane.mu.Lock()
	defer p.dataplane.mu.Unlock()
	running := p.dataplane.running[uid(args[0])]
	if running == nil || running.target.DNS != (args[1] == "yes") {
		p.t.Fatalf("%s: captured %v", p.at, running != nil)
	}
}

// calls CALL;CALL: all calls of the data plane so far, in order.
func (p *player) doCalls(args []string) {
	p.t.Helper()
	want := strings.Join(args, " ")
	p.eventually(p.at, func() bool { return strings.Join(p.dataplane.calls(), "; ") == want })
}

// pinned UID...: what earlier processes left, soon.
func (p *player) doPinned(args []string) {
	p.t.Helper()
	p.eventually(p.at, func() bool { return strings.Join(p.dataplane.Pinned(), " ") == strings.Join(args, " ") })
}

// ready yes|no
func (p *player) doReady(args []string) {
	p.t.Helper()
	if args[0] == "no" {
		select {
		case <-p.pods.Ready():
			p.t.Fatalf("%s: it is", p.at)
		case <-time.After(200 * time.Millisecond):
		}
		return
	}
	select {
	case <-p.pods.Ready():
	case <-time.After(10 * time.Second):
		p.t.Fatalf("%s: not after 10 s: %+v", p.at, p.pods.Statuses())
	}
}

// gate NAMESPACE ambient|none|unknown [labelled]: what the enrolment file says, soon.
func (p *player) doGate(args []string) {
	p.t.Helper()
	p.eventually(p.at, func() bool {
		content, err := cniproto.EnrolmentKind.Read(p.file("enrolment.json"))
		if err != nil {
			return false
		}
		var file cniproto.Enrolment
		if err := json.Unmarshal(content, &file); err != nil {
			p.t.Fatalf("%s: %v", p.at, err)
		}
		known, ok := file.Namespaces[args[0]]
		if args[1] == "unknown" {
			return !ok
		}
		return ok && known.Mode == args[1] && known.LabelledPods == (len(args) > 2)
	})
}

// TestSocketIsTheNextProcess: two processes may overlap, when a pod of the
// DaemonSet is deleted by force; the one that goes must not take the other's
// socket along.
func TestSocketIsTheNextProcess(t *testing.T) {
	w := newWorld(t)
	w.start()
	first := w.stop
	p := &player{world: w}
	p.doAdd([]string{"kube-system/dns", "a", "10.0.0.1", "open"})
	w.start()
	p.eventually("the next process listens", func() bool {
		content, err := os.ReadFile("/proc/net/unix")
		return err == nil && strings.Count(string(content), p.file("cni.sock")) == 2
	})
	second := w.stop
	first()
	w.stop = second
	p.doAdd([]string{"kube-system/dns", "a", "10.0.0.1", "open"})
}
