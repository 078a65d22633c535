package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// settings are what the environment says.
type settings struct {
	NodeName, PodName, PodNamespace string
	PodIP                           netip.Addr
	// Controller is host:port; the host is the name in its certificate.
	Controller             string
	TokenPath              string
	TrustDomain, ClusterID string
	OnDemand               bool
	// NeverHeld are namespaces that the CNI gate lets through.
	NeverHeld []string
	// Grace is what Kubernetes gives this process between SIGTERM and SIGKILL.
	Grace time.Duration
	// KubeletPort is where the kubelet serves, by which it is told from other processes of the node.
	KubeletPort uint16
	// StrictGrace is what connections get that are older than a pod's capture, when it turns strict.
	StrictGrace time.Duration

	// Limits of what one peer may hold.
	Limits accept.Limits

	folders
}

// folders are where things are on the node, as this process sees them.
type folders struct {
	HostProc, BPFFS      string
	HostNetNS            string // empty: that of the node's first process
	Cgroup2              string // empty: found by its file system type
	CNIBinDir, CNIConfig string
	StateDir, RunDir     string
	NetNSDir             string
	CNIPlugin            string // in the image
	// ResolvConf names the resolvers that answer what captured pods ask DNS servers.
	ResolvConf string
}

func (f folders) pins() string { return filepath.Join(f.BPFFS, "ambit") }

// redirection is where redirect finds things.
func (f folders) redirection() redirect.Config {
	return redirect.Config{
		PinDir: f.pins(), CgroupPath: f.Cgroup2, Procfs: f.HostProc, HostNetNS: f.HostNetNS, NetNSDir: f.NetNSDir, MountBPFFS: true,
	}
}

func (f folders) snapshot() string     { return filepath.Join(f.StateDir, "snapshot.pb") }
func (f folders) rootCert() string     { return filepath.Join(f.StateDir, "root-cert.pem") }
func (f folders) capturedPods() string { return filepath.Join(f.StateDir, "pods.json") }
func (f folders) enrolment() string    { return filepath.Join(f.StateDir, "enrolment.json") }
func (f folders) keys() string         { return filepath.Join(f.RunDir, "certs") }
func (f folders) names() string        { return filepath.Join(f.StateDir, "names.json") }
func (f folders) cniSocket() string    { return filepath.Join(f.RunDir, "cni.sock") }
func (f folders) succession() string   { return filepath.Join(f.RunDir, "succession.sock") }

// environment reads variables and collects what is wrong with them.
type environment struct {
	get      func(string) string
	problems []error
}

func (e *environment) text(name, otherwise string) string {
	if value := e.get(name); value != "" {
		return value
	}
	return otherwise
}

func (e *environment) wrong(name, format string, args ...any) {
	e.problems = append(e.problems, fmt.Errorf("%s: %s", name, fmt.Sprintf(format, args...)))
}

func (e *environment) required(name string) string {
	value := e.get(name)
	if value == "" {
		e.wrong(name, "not set")
	}
	return value
}

func (e *environment) truth(name string) bool {
	value, err := strconv.ParseBool(e.text(name, "false"))
	if err != nil {
		e.wrong(name, "%q is neither true nor false", e.get(name))
	}
	return value
}

func (e *environment) folder(name, otherwise string) string {
	value := e.text(name, otherwise)
	if value != "" && !filepath.IsAbs(value) {
		e.wrong(name, "%q is not an absolute path", value)
	}
	return value
}

// readSettings names all that is wrong at once.
func readSettings(get func(string) string) (settings, error) {
	e := &environment{get: get}
	s := settings{
		NodeName:     e.required("NODE_NAME"),
		PodName:      e.required("POD_NAME"),
		PodNamespace: e.required("POD_NAMESPACE"),
		Controller:   e.controller("CONTROLLER_ADDRESS", "https://controller.ambit-system.svc:15012"),
		TokenPath:    e.folder("TOKEN_PATH", "/var/run/secrets/tokens/ambit-token"),
		TrustDomain:  e.text("TRUST_DOMAIN", "cluster.local"),
		ClusterID:    e.text("CLUSTER_ID", "Kubernetes"),
		OnDemand:     e.truth("XDS_ON_DEMAND"),
		NeverHeld:    neverHeld(get("EXCLUDED_NAMESPACES")),
		Grace:        e.seconds("TERMINATION_GRACE_PERIOD_SECONDS", 30*time.Second),
		StrictGrace:  e.seconds("STRICT_GRACE_SECONDS", defaultGrace),
		KubeletPort:  e.port("KUBELET_PORT", 10250),
		Limits: accept.Limits{
			TunnelsPerAddress:      e.limit("MAX_TUNNELS_PER_ADDRESS"),
			TunnelsPerIdentity:     e.limit("MAX_TUNNELS_PER_IDENTITY"),
			ConnectionsPerAddress:  e.limit("MAX_CONNECTIONS_PER_ADDRESS"),
			ConnectionsPerIdentity: e.limit("MAX_CONNECTIONS_PER_IDENTITY"),
		},
		folders: readFolders(e),
	}
	ip, err := netip.ParseAddr(e.required("POD_IP"))
	if err != nil && get("POD_IP") != "" {
		e.wrong("POD_IP", "%v", err)
	}
	s.PodIP = ip
	return s, errors.Join(e.problems...)
}

func readFolders(e *environment) folders {
	return folders{
		HostProc:   e.folder("HOST_PROC", "/host/proc"),
		BPFFS:      e.folder("BPFFS", "/sys/fs/bpf"),
		HostNetNS:  e.folder("HOST_NETNS", ""),
		Cgroup2:    e.folder("CGROUP2", ""),
		CNIBinDir:  e.folder("CNI_BIN_DIR", "/host/opt/cni/bin"),
		CNIConfig:  e.folder("CNI_CONF_DIR", "/host/etc/cni/net.d"),
		StateDir:   e.folder("STATE_DIR", "/var/lib/ambit"),
		RunDir:     e.folder("RUN_DIR", "/run/ambit"),
		NetNSDir:   e.folder("NETNS_DIR", "/run/netns"),
		CNIPlugin:  e.folder("CNI_PLUGIN", "/opt/ambit/ambit-cni"),
		ResolvConf: e.folder("RESOLV_CONF", "/etc/resolv.conf"),
	}
}

func (e *environment) controller(name, otherwise string) string {
	address, err := url.Parse(e.text(name, otherwise))
	if err == nil && address.Scheme != "https" {
		err = fmt.Errorf("want https://HOST:PORT, got %q", e.text(name, otherwise))
	}
	if err == nil {
		_, _, err = net.SplitHostPort(address.Host)
	}
	if err != nil {
		e.wrong(name, "%v", err)
		return ""
	}
	return address.Host
}

func (e *environment) seconds(name string, otherwise time.Duration) time.Duration {
	text := e.get(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		e.wrong(name, "%q is not a number of seconds", text)
	}
	return time.Duration(n) * time.Second
}

// limit is a number of at least 1; 0, the default, if nothing is said.
func (e *environment) limit(name string) int {
	text := e.get(name)
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		e.wrong(name, "%q is not a number of at least 1", text)
	}
	return n
}

func (e *environment) port(name string, otherwise uint16) uint16 {
	text := e.get(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		e.wrong(name, "%q is not a port", text)
	}
	return uint16(n)
}

func neverHeld(configured string) []string {
	all := slices.Clone(cniproto.NeverHeld)
	for name := range strings.SplitSeq(configured, ",") {
		if name = strings.TrimSpace(name); name != "" && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}
