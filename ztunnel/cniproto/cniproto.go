// Package cniproto is what the CNI plugin and ztunnel say to each other on a
// node: JSON over HTTP on a unix socket, the file that speaks for ztunnel
// while it is down, and the plugin's entry in the CNI chain.
//
//	POST /v1/add    AddRequest   -> 200 AddReply, or a status of 400 and above with Problem
//	POST /v1/check  AddRequest   -> likewise; fails if the pod ought to be captured and is not
//	POST /v1/del    DelRequest   -> 200, always
//
// The plugin links nothing else of ztunnel, and stays small.
package cniproto

import (
	"fmt"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/statefile"
)

const (
	// PluginType is the name of the plugin's binary and its `type` in a CNI chain.
	PluginType = "ambit-cni"

	PathAdd   = "/v1/add"
	PathDel   = "/v1/del"
	PathCheck = "/v1/check"

	DefaultSocket        = "/run/ambit/cni.sock"
	DefaultEnrolmentFile = "/var/lib/ambit/enrolment.json"
)

// StartedUngated is the code of the node's problem that an enrolled pod started
// without the gate.
const StartedUngated = "StartedUngated"

// AddTimeout is the plugin's patience with one ADD. The kubelet gives a
// sandbox two minutes, and tries again with a new one when an ADD fails.
const AddTimeout = 20 * time.Second

// DelTimeout is short: a DEL never fails, it may only be late.
const DelTimeout = 3 * time.Second

// NeverHeld are the namespaces whose pods start without asking: the mesh
// itself, DNS and the cluster's own components must come up for ztunnel to
// come up.
var NeverHeld = []string{"ambit-system", "kube-system"}

// AddRequest asks for a sandbox that the plugins earlier in the chain have
// given its network.
type AddRequest struct {
	Namespace   string   `json:"namespace"`
	Name        string   `json:"name"`
	UID         string   `json:"uid"`
	ContainerID string   `json:"containerID"`
	NetNS       string   `json:"netns"`
	Addresses   []string `json:"addresses"`
}

// AddReply says that the pod may start.
type AddReply struct {
	// Captured is false where the pod is not enrolled.
	Captured bool `json:"captured"`
}

// DelRequest says that a sandbox ends: its processes have ended before.
type DelRequest struct {
	Namespace   string `json:"namespace"`
	Name        string `json:"name"`
	UID         string `json:"uid"`
	ContainerID string `json:"containerID"`
	NetNS       string `json:"netns"`
}

// Problem is why a pod may not start.
type Problem struct {
	// Code is one CamelCase word.
	Code    string `json:"code"`
	Message string `json:"message"`
}

// ModeAmbient and ModeNone are the modes of a namespace in an Enrolment.
const (
	ModeAmbient = "ambient"
	ModeNone    = "none"
)

// EnrolmentKind is how an Enrolment is written: in doubt about the file, the
// gate stays shut. A namespace takes some hundred bytes.
var EnrolmentKind = statefile.Kind{Name: "enrolment", Version: 1, MaxBytes: 64 << 20}

// Enrolment is the file that ztunnel writes on each change, and that decides
// about new pods while ztunnel does not answer.
type Enrolment struct {
	// Excluded namespaces are never held.
	Excluded []string `json:"excluded"`
	// Namespaces holds every namespace of the cluster.
	Namespaces map[string]NamespaceEnrolment `json:"namespaces"`
}

// NamespaceEnrolment is what is known of one namespace.
type NamespaceEnrolment struct {
	// Mode is ModeAmbient or ModeNone.
	Mode string `json:"mode"`
	// Since when it is known to have that mode: whatever starts later starts so.
	Since time.Time `json:"since,omitzero"`
	// LabelledPods tells that pods of the namespace have been seen with a label
	// of their own that enrols them. It stays true for as long as the namespace
	// exists: a scaled-down workload may come back while ztunnel is down.
	LabelledPods bool `json:"labelled_pods"`
}

// Opens tells whether a pod of a namespace may start on this word alone: only
// where the namespace is known to be outside the mesh, with no pod that enrols
// itself. Otherwise code and reason say why not.
func (e Enrolment) Opens(namespace string) (open bool, code, reason string) {
	if slices.Contains(e.Excluded, namespace) {
		return true, "", ""
	}
	known, ok := e.Namespaces[namespace]
	switch {
	case !ok:
		return false, "EnrolmentUnknown", fmt.Sprintf("it did not know namespace %s when it wrote its enrolment file", namespace)
	case known.Mode == ModeAmbient:
		return false, "ZtunnelDown", fmt.Sprintf("namespace %s is in the mesh: the pod waits until it can be captured", namespace)
	case known.Mode != ModeNone:
		return false, "EnrolmentUnknown", fmt.Sprintf("its enrolment file gives namespace %s the unknown mode %q", namespace, known.Mode)
	case known.LabelledPods:
		return false, "EnrolmentUnknown", fmt.Sprintf("pods of namespace %s enrol themselves by a label of their own, which only ztunnel can tell", namespace)
	}
	return true, "", ""
}

// ChainEntry is the plugin's configuration, an element of a conflist's plugins.
type ChainEntry struct {
	Type               string   `json:"type"`
	Socket             string   `json:"socket"`
	EnrolmentFile      string   `json:"enrolmentFile"`
	ExcludedNamespaces []string `json:"excludedNamespaces"`
	LogLevel           string   `json:"logLevel,omitempty"`
}
