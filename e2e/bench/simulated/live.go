package simulated

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/e2e/bench/simulated/apiserver"
	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// AddPod adds a pod to a mesh that runs, as a kubelet does: Kubernetes binds it
// to its node, the gate is asked about its sandbox, and only then does it have
// addresses that Kubernetes knows. The error is the gate's, where it holds.
func (m *Mesh) AddPod(ctx context.Context, p Pod, account string) (*RunningPod, error) {
	pod, err := m.nodes[p.Node].addPod(p.Name)
	if err != nil {
		return nil, err
	}
	m.pods[p.Name] = pod
	spec := podSpec{
		namespace: Namespace, name: p.Name, account: account, node: p.Node,
		labels: map[string]string{"app": p.Name, modeLabel: mode(!p.Outside)},
	}
	object := podObject(spec)
	if err := m.api.Put(object); err != nil {
		return nil, err
	}
	if err := m.askGate(ctx, pod, pod.Name); err != nil {
		return pod, err
	}
	spec.ips = []netip.Addr{pod.IPv4, pod.IPv6}
	return pod, m.api.Put(podObject(spec))
}

// Resandbox gives a pod another network namespace, with other addresses, as a
// kubelet does when a sandbox has died. Kubernetes is not told.
func (m *Mesh) Resandbox(ctx context.Context, name string) (*RunningPod, error) {
	old := m.pods[name]
	if _, err := m.cni(ctx, old.node, cniproto.PathDel, cniproto.DelRequest{Namespace: Namespace, Name: name, NetNS: old.sandboxPath()}); err != nil {
		return nil, err
	}
	next, err := old.node.addPod(old.Name + "-again")
	if err != nil {
		return nil, err
	}
	m.pods[name] = next
	return next, m.askGate(ctx, next, name)
}

// sandboxPath is how the container runtime names a pod's network namespace.
func (p *RunningPod) sandboxPath() string { return "/run/netns/cni-" + p.Name }

// askGate asks a node's ztunnel to let a pod start, as the CNI plugin does.
func (m *Mesh) askGate(ctx context.Context, pod *RunningPod, name string) error {
	object := &corev1.Pod{}
	if !apiserver.Get(m.api, Namespace, name, object) {
		return fmt.Errorf("ask the gate: Kubernetes has no pod %s", name)
	}
	answer, err := m.cni(ctx, pod.node, cniproto.PathAdd, cniproto.AddRequest{
		Namespace: Namespace, Name: name, UID: string(object.UID), ContainerID: pod.Name,
		NetNS: pod.sandboxPath(), Addresses: []string{pod.IPv4.String(), pod.IPv6.String()},
	})
	if err != nil {
		return fmt.Errorf("the gate holds pod %s: %w", name, err)
	}
	reply := cniproto.AddReply{}
	if err := json.Unmarshal(answer, &reply); err != nil || !reply.Captured {
		return fmt.Errorf("the gate let pod %s start, captured: %t (%v)", name, reply.Captured, err)
	}
	return nil
}

// cni puts one question of the CNI plugin to a node's ztunnel.
func (m *Mesh) cni(ctx context.Context, n *node, path string, request any) ([]byte, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.dir, "run/ambit/cni.sock"))
	}}}
	asked, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://ztunnel"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := client.Do(asked)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, answer)
	}
	return answer, err
}

// StopAPI ends the API server: what is connected to it is cut, and nobody
// listens there any more.
func (m *Mesh) StopAPI() error { return m.apiServer.Close() }

// ForgetKeys takes from a node what a reboot takes, as far as ztunnel's keys go.
func (m *Mesh) ForgetKeys(node string) error {
	return os.RemoveAll(filepath.Join(m.nodes[node].dir, "run/ambit/certs"))
}
