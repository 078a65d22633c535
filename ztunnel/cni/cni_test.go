package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// TestMain is the plugin itself where a container runtime's environment says so.
func TestMain(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const prevResult = `{"cniVersion":"1.0.0","interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"/var/run/netns/cni-1"}],` +
	`"ips":[{"address":"10.0.0.5/24","interface":1},{"address":"fd00::5/64","interface":1},{"address":"192.0.2.1/24","interface":0}],"unknown":{"kept":true}}`

// node is a node as the plugin sees it: a socket, perhaps with a ztunnel behind
// it, and an enrolment file, perhaps.
type node struct {
	dir   string
	asked []cniproto.AddRequest
}

func newNode(t *testing.T) *node { return &node{dir: t.TempDir()} }

func (n *node) socket() string { return filepath.Join(n.dir, "cni.sock") }
func (n *node) file() string   { return filepath.Join(n.dir, "enrolment.json") }

// ztunnel answers every question with a status and a body; "" hangs up.
func (n *node) ztunnel(t *testing.T, status int, body string) {
	t.Helper()
	listener, err := net.Listen("unix", n.socket())
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request cniproto.AddRequest
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			t.Errorf("ztunnel got no JSON: %v", err)
		}
		n.asked = append(n.asked, request)
		if body == "" {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
}

func (n *node) enrolment(t *testing.T, content string) {
	t.Helper()
	if err := cniproto.EnrolmentKind.Write(n.file(), []byte(content)); err != nil {
		t.Fatal(err)
	}
}

func (n *node) args(namespace string) *skel.CmdArgs {
	return &skel.CmdArgs{
		ContainerID: "sandbox-1", Netns: "/var/run/netns/cni-1", IfName: "eth0",
		Args: fmt.Sprintf("IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=cart-0;K8S_POD_INFRA_CONTAINER_ID=sandbox-1;K8S_POD_UID=uid-1", namespace),
		StdinData: fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"net","type":"ambit-cni","socket":%q,"enrolmentFile":%q,"excludedNamespaces":["storage"],"prevResult":%s}`,
			n.socket(), n.file(), prevResult),
	}
}

func TestGate(t *testing.T) {
	const file = `{"excluded":["ambit-system","monitoring"],"namespaces":{` +
		`"shop":{"mode":"ambient","labelled_pods":false},"plain":{"mode":"none","labelled_pods":false},` +
		`"mixed":{"mode":"none","labelled_pods":true},"odd":{"mode":"strange","labelled_pods":false}}}`
	for _, c := range []struct {
		name      string
		namespace string
		status    int    // of a ztunnel that answers; 0: none there
		body      string // its answer; "" with a status: hangs up
		file      string
		held      string // part of the error; "" for a pod that starts
	}{
		{name: "captured", namespace: "shop", status: 200, body: `{"captured":true}`},
		{name: "not enrolled", namespace: "plain", status: 200, body: `{"captured":false}`},
		{name: "refused with a reason", namespace: "shop", status: 500, body: `{"code":"BPFFSMissing","message":"mount it"}`, file: file, held: "BPFFSMissing: mount it"},
		{name: "refused, whatever the file says", namespace: "plain", status: 503, body: `{"code":"EnrolmentUnknown","message":"x"}`, file: file, held: "EnrolmentUnknown"},
		{name: "refused without sense", namespace: "plain", status: 500, body: `<html>`, file: file, held: "BadAnswer"},
		{name: "answered without sense", namespace: "plain", status: 200, body: `<html>`, file: file, held: "BadAnswer"},
		{name: "hung up, enrolled", namespace: "shop", status: 200, file: file, held: "ZtunnelDown"},
		{name: "hung up, not enrolled", namespace: "plain", status: 200, file: file},
		{name: "down, enrolled", namespace: "shop", file: file, held: "ZtunnelDown"},
		{name: "down, not enrolled", namespace: "plain", file: file},
		{name: "down, pods with labels", namespace: "mixed", file: file, held: "EnrolmentUnknown"},
		{name: "down, unknown mode", namespace: "odd", file: file, held: "unknown mode"},
		{name: "down, unknown namespace", namespace: "new", file: file, held: "did not know namespace new"},
		{name: "down, no file", namespace: "plain", held: "cannot be read"},
		{name: "down, torn file", namespace: "plain", file: file[:len(file)/2], held: "cannot be read"},
		{name: "down, empty file", namespace: "plain", file: " ", held: "cannot be read"},
		{name: "down, file without namespaces", namespace: "plain", file: `{}`, held: "did not know namespace"},
		{name: "down, excluded by the file", namespace: "monitoring", file: file},
		{name: "down, excluded by the chain entry", namespace: "storage"},
		{name: "down, kube-system", namespace: "kube-system"},
		{name: "down, ambit-system", namespace: "ambit-system"},
		{name: "a ztunnel that refuses is not asked about kube-system", namespace: "kube-system", status: 500, body: `{"code":"X","message":"x"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			if c.status != 0 {
				n.ztunnel(t, c.status, c.body)
			}
			if c.file != "" {
				n.enrolment(t, c.file)
			}
			var out bytes.Buffer
			err := plugin{stdout: &out, stderr: io.Discard}.add(n.args(c.namespace))
			if c.held == "" {
				if err != nil {
					t.Fatalf("held: %v", err)
				}
				if out.String() != prevResult {
					t.Errorf("result %s, want the previous one untouched", out.String())
				}
				return
			}
			if err == nil {
				t.Fatal("let start")
			}
			wrong, ok := errors.AsType[*types.Error](err)
			if !ok || wrong.Code != types.ErrTryAgainLater || !strings.Contains(wrong.Msg, c.held) || !strings.Contains(wrong.Msg, c.namespace+"/cart-0") {
				t.Errorf("error %v, want one to try again later that names the pod and %q", err, c.held)
			}
			if out.Len() > 0 {
				t.Errorf("result %s of a pod that is held", out.String())
			}
		})
	}
}

// The file opens the gate only as it was written: every truncation, every
// flipped byte and every file that somebody else may have written shuts it.
func TestADamagedEnrolmentFileHolds(t *testing.T) {
	n := newNode(t)
	n.enrolment(t, `{"namespaces":{"plain":{"mode":"none"}}}`)
	whole, err := os.ReadFile(n.file())
	if err != nil {
		t.Fatal(err)
	}
	open := func() bool {
		return decideByFile(n.file(), "plain", io.EOF).open
	}
	if !open() {
		t.Fatal("held by the file as it was written")
	}
	put := func(content []byte) {
		t.Helper()
		if err := os.WriteFile(n.file(), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for at := range whole {
		put(whole[:at])
		if open() {
			t.Errorf("opened by the first %d bytes", at)
		}
		flipped := bytes.Clone(whole)
		flipped[at] ^= 1
		put(flipped)
		if open() {
			t.Errorf("opened with byte %d flipped", at)
		}
	}
	put([]byte(`{"namespaces":{"plain":{"mode":"none"}}}`))
	if open() {
		t.Error("opened by a file without a checksum")
	}
	put(whole)
	if err := os.Chmod(n.file(), 0o666); err != nil {
		t.Fatal(err)
	}
	if open() {
		t.Error("opened by a file that anyone may write")
	}
}

func TestZtunnelLearnsTheSandbox(t *testing.T) {
	n := newNode(t)
	n.ztunnel(t, 200, `{"captured":true}`)
	if err := (plugin{stdout: io.Discard, stderr: io.Discard}).add(n.args("shop")); err != nil {
		t.Fatal(err)
	}
	if len(n.asked) != 1 {
		t.Fatalf("asked %d times, want once", len(n.asked))
	}
	got := n.asked[0]
	if got.Namespace != "shop" || got.Name != "cart-0" || got.UID != "uid-1" || got.ContainerID != "sandbox-1" || got.NetNS != "/var/run/netns/cni-1" {
		t.Errorf("asked about %+v", got)
	}
	if want := []string{"10.0.0.5", "fd00::5"}; !slices.Equal(got.Addresses, want) {
		t.Errorf("addresses %v, want %v: those of the interface in the sandbox", got.Addresses, want)
	}
}

func TestMalformedConfigurationNamesItsField(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct{ name, stdin, want string }{
		{"not JSON", `{"name":`, "unexpected end"},
		{"socket is a number", `{"name":"net","socket":5,"prevResult":{}}`, `field "socket"`},
		{"socket is relative", `{"name":"net","socket":"cni.sock","prevResult":{}}`, `field "socket"`},
		{"enrolmentFile is relative", `{"name":"net","enrolmentFile":"x","prevResult":{}}`, `field "enrolmentFile"`},
		{"excludedNamespaces is a string", `{"name":"net","excludedNamespaces":"a,b","prevResult":{}}`, `field "excludedNamespaces"`},
		{"logLevel is unknown", `{"name":"net","logLevel":"loud","prevResult":{}}`, `field "logLevel"`},
		{"prevResult is a list", `{"name":"net","prevResult":[]}`, `field "prevResult"`},
		{"not chained", `{"name":"net"}`, "no prevResult"},
		{"null prevResult", `{"name":"net","prevResult":null}`, "no prevResult"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := n.args("kube-system") // would be let start otherwise
			args.StdinData = []byte(c.stdin)
			err := plugin{stdout: io.Discard, stderr: io.Discard}.add(args)
			wrong, ok := errors.AsType[*types.Error](err)
			if !ok || wrong.Code != types.ErrInvalidNetworkConfig || !strings.Contains(wrong.Msg, c.want) {
				t.Errorf("error %v, want an invalid configuration with %q", err, c.want)
			}
		})
	}
}

func TestPodNamedByHalfIsRefusedAndNoPodLeftAlone(t *testing.T) {
	n := newNode(t)
	args := n.args("shop")
	args.Args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop"
	if err := (plugin{stdout: io.Discard, stderr: io.Discard}).add(args); err == nil {
		t.Error("a pod without a name was let start")
	}
	args.Args = ""
	var out bytes.Buffer
	if err := (plugin{stdout: &out, stderr: io.Discard}).add(args); err != nil || out.String() != prevResult {
		t.Errorf("a container that is no pod: error %v, result %s", err, out.String())
	}
}

func TestDelAlwaysSucceeds(t *testing.T) {
	for _, c := range []struct {
		name  string
		alter func(*skel.CmdArgs)
		asked int
	}{
		{"as usual", func(*skel.CmdArgs) {}, 1},
		{"malformed configuration", func(a *skel.CmdArgs) { a.StdinData = []byte(`{`) }, 0},
		{"no prevResult", func(a *skel.CmdArgs) {
			a.StdinData = bytes.ReplaceAll(a.StdinData, []byte(`,"prevResult":`+prevResult), nil)
		}, 1},
		{"no namespace left", func(a *skel.CmdArgs) { a.Netns = "" }, 0},
		{"no pod", func(a *skel.CmdArgs) { a.Args = "" }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			n.ztunnel(t, 500, `{"code":"X","message":"x"}`)
			args := n.args("shop")
			c.alter(args)
			if err := (plugin{stdout: io.Discard, stderr: io.Discard}).del(args); err != nil {
				t.Errorf("DEL: %v", err)
			}
			if len(n.asked) != c.asked {
				t.Errorf("ztunnel told %d times, want %d", len(n.asked), c.asked)
			}
		})
	}
	t.Run("ztunnel down", func(t *testing.T) {
		if err := (plugin{stdout: io.Discard, stderr: io.Discard}).del(newNode(t).args("shop")); err != nil {
			t.Errorf("DEL: %v", err)
		}
	})
}

func TestCheck(t *testing.T) {
	n := newNode(t)
	p := plugin{stdout: io.Discard, stderr: io.Discard}
	if err := p.check(n.args("shop")); err != nil {
		t.Errorf("CHECK without ztunnel: %v; what is pinned holds without it", err)
	}
	n.ztunnel(t, 409, `{"code":"NotCaptured","message":"the pod is enrolled and not captured"}`)
	if err := p.check(n.args("shop")); err == nil || !strings.Contains(err.Error(), "NotCaptured") {
		t.Errorf("CHECK of a pod that is not captured: %v", err)
	}
}

// call runs the plugin as a container runtime does.
func call(t *testing.T, command string, args *skel.CmdArgs) (stdout string, failed bool) {
	t.Helper()
	plugin := exec.Command("/proc/self/exe")
	plugin.Env = []string{
		"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + args.ContainerID, "CNI_NETNS=" + args.Netns,
		"CNI_IFNAME=" + args.IfName, "CNI_ARGS=" + args.Args, "CNI_PATH=/opt/cni/bin",
	}
	plugin.Stdin = bytes.NewReader(args.StdinData)
	out, err := plugin.Output()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatal(err)
	}
	return string(out), err != nil
}

func TestSpeaksTheProtocol(t *testing.T) {
	n := newNode(t)
	out, failed := call(t, "VERSION", n.args("shop"))
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		if failed || !strings.Contains(out, `"`+version+`"`) {
			t.Errorf("VERSION: %s", out)
		}
	}
	// Held: ztunnel is down, and nothing is known.
	out, failed = call(t, "ADD", n.args("shop"))
	var wrong types.Error
	if err := json.Unmarshal([]byte(out), &wrong); err != nil || !failed || wrong.Code != types.ErrTryAgainLater || !strings.Contains(wrong.Msg, "shop/cart-0") {
		t.Errorf("ADD of a pod that is held: failed %v, %s", failed, out)
	}
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		args := n.args("kube-system")
		args.Netns = ""
		args.StdinData = bytes.ReplaceAll(args.StdinData, []byte("1.0.0"), []byte(version))
		if out, failed := call(t, "DEL", args); failed {
			t.Errorf("DEL in version %s: %s", version, out)
		}
	}
	args := n.args("shop")
	args.StdinData = bytes.ReplaceAll(args.StdinData, []byte("1.0.0"), []byte("1.1.0"))
	if out, failed := call(t, "STATUS", args); failed {
		t.Errorf("STATUS without ztunnel: %s; the node would not be ready, and ztunnel not come", out)
	}
}
