// Package simulated is a mesh without a Kubernetes cluster: the shipped ztunnel
// and controller, run as their manifests say, on nodes and with pods that are
// network namespaces. Benchmarks measure it, on any machine, as root.
//
//	func main() {
//		simulated.Isolate()
//		mesh, err := simulated.Start(ctx, simulated.Config{
//			Nodes: []string{"a", "b"},
//			Pods:  []simulated.Pod{{Name: "client", Node: "a"}, {Name: "server", Node: "b", Port: 8080}},
//		})
//		defer mesh.Stop()
//		err = mesh.WaitCaptured(ctx)
//		err = mesh.Pod("server").Start(exec.Command("/proc/self/exe", "serve"))
//
//	isolate.go    the program again, where nothing that it does reaches the machine
//	simulated.go  a mesh: its parts, started in order and stopped
//	node.go       a node: process ids, cgroup, network of its own; and its pods
//	container.go  one shipped process, in a file system of its own
//	shipped.go    what the manifests say of it; building it
//	objects.go    what kubelets and users would tell Kubernetes
//	live.go       what happens to a mesh that runs: pods that come, parts that end
//	fleet.go      as many workloads more as wanted, which exist in Kubernetes alone
//	wait.go       until the mesh is as it shall be
//	inspect.go    what a shipped process tells of itself
//
// What is real: the binaries, their environment, capabilities and folders, the
// kernel's redirection, certificates, the configuration stream. What is not:
// the API server (package apiserver), and pods of the fleet. The CNI plugin is
// installed and never called: pods are there before they are captured, as when
// a running namespace is labelled; for one that is added later, ztunnel is asked
// as the plugin asks it.
//
// Invariants: a process that is to be captured is started with [RunningPod.Start],
// which puts it into its node's cgroup: a socket of this process in a pod's
// namespace is not captured. When Stop returns, all processes, mounts and
// cgroups are gone; when this process is killed, the kernel ends them too.
package simulated

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/deploy"
	"github.com/ambit-mesh/ambit/e2e/bench/simulated/apiserver"
	"github.com/ambit-mesh/ambit/internal/topology"
)

// Config of a mesh.
type Config struct {
	// Nodes with a ztunnel each; three at most.
	Nodes []string
	// Pods that are there.
	Pods []Pod
	// Workloads that Kubernetes knows besides the pods: the fleet.
	Workloads int
	// PodsPerService of the fleet; 50 if 0.
	PodsPerService int
	// Controllers is how many replicas there are of it; 1 if 0.
	Controllers int
	// OnDemand has ztunnels ask for workloads as they meet them.
	OnDemand bool

	// Prepare, if set, is called with the network of each of Pods before anything
	// listens in it.
	Prepare func(*topology.NetNS) error

	// Ztunnel, Controller and CNI are the binaries; if empty, those that Isolate built.
	Ztunnel, Controller, CNI string
	// Environment of ztunnels ("NAME=value") besides what the manifest says.
	Environment []string
	// Without is a capability that the manifest gives and ztunnels do not get here.
	Without corev1.Capability
	// Logs is the folder for what the processes say; made if missing. If empty,
	// it is of the mesh's own and gone with it.
	Logs string
}

// Pod is one pod of the mesh. Its service account has its name.
type Pod struct {
	Name string
	// Node is one of Config.Nodes.
	Node string
	// Port, if not 0, of a Service with the pod's name, whose one endpoint it is.
	Port uint16
	// Outside of the mesh, until Mesh.Enrol.
	Outside bool
}

const (
	// Namespace of the pods.
	Namespace = "mesh"
	// control is the node of the API server and the controller.
	control = "control-plane"
	// apiPort of the API server.
	apiPort = 6443
)

// Mesh is a mesh that runs. Its methods may be called concurrently, but for
// StartZtunnel and Stop.
type Mesh struct {
	// Fixed after Start, but for a ztunnel that is started anew.
	config    Config
	dir       string // mount points and files
	api       *apiserver.Server
	apiServer *http.Server // that serves it
	apiCA     []byte       // PEM
	network   *topology.Network
	nodes     map[string]*node
	pods      map[string]*RunningPod
	system    map[string]*RunningPod // of the mesh's own components
	// controllers are the replicas, in the order of their pods.
	controllers []*Process
	ztunnels    map[string]*Process // by node
	stops       []func() error      // to be called backwards
}

// Start starts the API server, the controller and, when that is ready, a
// ztunnel on every node. It waits for nothing else: see Mesh.WaitCaptured.
func Start(ctx context.Context, config Config) (_ *Mesh, err error) {
	if !topology.Isolated() {
		return nil, errors.New("start mesh: call Isolate first")
	}
	m := &Mesh{
		config: config, api: apiserver.New(), nodes: map[string]*node{}, ztunnels: map[string]*Process{},
		pods: map[string]*RunningPod{}, system: map[string]*RunningPod{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start mesh: %w", err), m.Stop())
		}
	}()
	if err := m.makeDir(); err != nil {
		return nil, err
	}
	if m.config.Logs == "" {
		m.config.Logs = filepath.Join(m.dir, "logs")
	}
	for _, step := range []func(context.Context) error{
		m.findBinaries, m.makeNodes, m.makePods, m.serveAPI, m.putObjects, m.startControllers, m.startZtunnels,
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// makeDir makes the folder of all that the mesh mounts and writes, in memory.
func (m *Mesh) makeDir() (err error) {
	if m.dir, err = os.MkdirTemp(topology.Scratch(), "mesh-"); err != nil {
		return err
	}
	m.stops = append(m.stops, func() error { return os.Remove(m.dir) })
	if err := mount("mesh", m.dir, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	m.stops = append(m.stops, func() error {
		if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil { // and all that is mounted in it
			return fmt.Errorf("unmount %s: %w", m.dir, err)
		}
		return nil
	})
	return nil
}

// Stop ends everything and removes it. It may be called more than once.
func (m *Mesh) Stop() error {
	var errs []error
	for _, stop := range slices.Backward(m.stops) {
		errs = append(errs, stop())
	}
	m.stops = nil
	return errors.Join(errs...)
}

// Pod returns a pod by its name, nil if there is none.
func (m *Mesh) Pod(name string) *RunningPod { return m.pods[name] }

// Ztunnel returns the ztunnel of a node, nil if there is none.
func (m *Mesh) Ztunnel(node string) *Process { return m.ztunnels[node] }

// Controller returns the controller, the first where there are several.
func (m *Mesh) Controller() *Process { return m.controllers[0] }

// Leading returns the controller that holds the Lease, nil if none does.
func (m *Mesh) Leading() *Process {
	lease := &coordinationv1.Lease{}
	if !apiserver.Get(m.api, systemNamespace, "controller", lease) || lease.Spec.HolderIdentity == nil {
		return nil
	}
	for _, c := range m.controllers {
		if c.pod.Name == *lease.Spec.HolderIdentity {
			return c
		}
	}
	return nil
}

// Network returns the nodes' network: tests look at its wire.
func (m *Mesh) Network() *topology.Network { return m.network }

// Service returns the address of the Service of a pod with a port. It means
// something to captured pods alone: there is no kube-proxy.
func (m *Mesh) Service(pod string) netip.AddrPort {
	for i, p := range m.config.Pods {
		if p.Name == pod {
			return netip.AddrPortFrom(serviceAddress(i), p.Port)
		}
	}
	return netip.AddrPort{}
}

func (m *Mesh) makeNodes(context.Context) (err error) {
	if m.network, err = topology.New(append(slices.Clone(m.config.Nodes), control)...); err != nil {
		return err
	}
	m.stops = append(m.stops, m.network.Close)
	for _, name := range append(slices.Clone(m.config.Nodes), control) {
		n, err := newNode(m.network.Node(name), filepath.Join(m.dir, name))
		if err != nil {
			return fmt.Errorf("make node %s: %w", name, err)
		}
		m.nodes[name] = n
		m.stops = append(m.stops, n.close)
	}
	return nil
}

func (m *Mesh) makePods(context.Context) error {
	for _, p := range m.config.Pods {
		n, ok := m.nodes[p.Node]
		if !ok || p.Node == control {
			return fmt.Errorf("make pod %s: no node %q", p.Name, p.Node)
		}
		pod, err := n.addPod(p.Name)
		if err != nil {
			return err
		}
		if m.config.Prepare != nil {
			if err := m.config.Prepare(pod.NetNS); err != nil {
				return fmt.Errorf("prepare pod %s: %w", p.Name, err)
			}
		}
		m.pods[p.Name] = pod
	}
	for _, name := range m.config.Nodes {
		pod, err := m.nodes[name].addPod(ztunnelPod(name))
		if err != nil {
			return err
		}
		m.system[pod.Name] = pod
	}
	for i := range max(1, m.config.Controllers) {
		pod, err := m.nodes[control].addPod(controllerPod(i))
		if err != nil {
			return err
		}
		m.system[pod.Name] = pod
	}
	return nil
}

// controllerPod is the name of the pod of one of the controller's replicas.
func controllerPod(replica int) string {
	if replica == 0 {
		return "controller"
	}
	return fmt.Sprint("controller-", replica)
}

func ztunnelPod(node string) string { return "ztunnel-" + node }

// serveAPI serves Kubernetes on the control plane's node.
func (m *Mesh) serveAPI(context.Context) error {
	node := m.nodes[control]
	certificate, pemBytes, err := selfSigned(node.IPv4)
	if err != nil {
		return err
	}
	m.apiCA = pemBytes
	var listener net.Listener
	err = node.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(node.IPv4, apiPort).String())
		return err
	})
	if err != nil {
		return fmt.Errorf("serve Kubernetes: %w", err)
	}
	server := &http.Server{
		Handler:   m.api,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
		ErrorLog:  log.New(io.Discard, "", 0), // clients that are killed, as tests do
	}
	m.apiServer = server
	go server.ServeTLS(listener, "", "")
	m.stops = append(m.stops, server.Close, m.endProcesses) // before Kubernetes: they would complain
	return nil
}

func (m *Mesh) endProcesses() error {
	var errs []error
	for _, n := range m.nodes {
		errs = append(errs, topology.KillCgroup(n.cgroup))
	}
	return errors.Join(errs...)
}

func selfSigned(ip netip.Addr) (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("generate key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "kubernetes"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IPAddresses: []net.IP{ip.AsSlice()}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("sign certificate of Kubernetes: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func (m *Mesh) startControllers(ctx context.Context) error {
	m.controllers = make([]*Process, max(1, m.config.Controllers))
	for i := range m.controllers {
		if err := m.StartController(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// StartController starts a replica of the controller whose last process has
// ended, and waits until it is ready.
func (m *Mesh) StartController(ctx context.Context, replica int) error {
	shipped, err := readShipped(deploy.Controller, "controller", m.values())
	if err != nil {
		return err
	}
	pod := m.system[controllerPod(replica)]
	m.controllers[replica], err = m.startContainer(container{
		shipped: shipped, binary: m.config.Controller, pod: pod, log: pod.Name + ".log",
	})
	if err != nil {
		return err
	}
	return m.controllers[replica].WaitReady(ctx)
}

func (m *Mesh) startZtunnels(context.Context) error {
	for _, name := range m.config.Nodes {
		if err := m.StartZtunnel(name); err != nil {
			return err
		}
	}
	return nil
}

// StartZtunnel starts the ztunnel of a node whose last one has ended: in the
// same pod, as a container that is restarted.
func (m *Mesh) StartZtunnel(node string) error {
	shipped, err := readShipped(deploy.Ztunnel, "ztunnel", m.values())
	if err != nil {
		return err
	}
	shipped.environment = append(shipped.environment, m.config.Environment...)
	if err := shipped.drop(m.config.Without); err != nil {
		return err
	}
	pod := m.system[ztunnelPod(node)]
	started, err := m.startContainer(container{
		shipped: shipped, binary: m.config.Ztunnel, pod: pod, log: pod.Name + ".log", onNode: true,
		files: map[string]string{"/opt/ambit/ambit-cni": m.config.CNI},
	})
	if err == nil {
		m.ztunnels[node] = started
	}
	return err
}

// values are those that the manifests are rendered with.
func (m *Mesh) values() deploy.Values {
	values := deploy.Defaults()
	values.OnDemand = m.config.OnDemand
	return values
}

// newToken returns a token that nobody can guess.
func newToken() string {
	var random [24]byte
	rand.Read(random[:])
	return hex.EncodeToString(random[:])
}
