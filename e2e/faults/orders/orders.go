// Package orders is how the harness of faults and the applications of a trial
// speak: by files in a folder of the node, since the network, the API server
// and ztunnel are what is being broken.
//
//	NAMESPACE/POD.orders   written by the harness, whole or not at all: what to do
//	NAMESPACE/POD.tale     appended by the application: a line for each attempt
//
// Every message that an application sends bears [Marker], so that a capture
// tells plaintext by its content.
package orders

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Marker is in everything that applications say to each other, and nowhere else.
const Marker = "ambit-faults-in-clear"

// Folder is where the files are, on a node and in a pod.
const Folder = "/var/lib/ambit-faults"

// Port is where every application of a trial answers, and [HealthPort] where
// it answers the kubelet.
const (
	Port       = 7100
	HealthPort = 8080
)

// Orders are what one application does until it reads others.
type Orders struct {
	// Targets are asked over and over: each by new connections, and over one
	// that is kept.
	Targets []Target
	// Attacks are tried over and over.
	Attacks []Attack `json:",omitempty"`
}

// Target is another application.
type Target struct {
	// Name is the harness's own.
	Name string
	// Address is IP:PORT.
	Address string
}

// Attack is a way in which an application tries to get around the mesh.
type Attack struct {
	// Kind is one of those that the application knows.
	Kind string
	// Addresses are IP:PORT, of one family or both.
	Addresses []string
}

// Kind of an attempt.
type Kind string

const (
	// New is a connection of its own.
	New Kind = "new"
	// Kept is one more question over the connection that is kept.
	Kept Kind = "kept"
	// Attacked is one try of the attack: what came of it, only the wire shows.
	Attacked Kind = "attack"
)

// Attempt is a line of an application's tale.
type Attempt struct {
	// Began and Ended are in the clock that all machines of the lab share.
	Began, Ended time.Time
	Kind         Kind
	Target       string
	// Conn tells kept connections apart: the microsecond in which it was opened.
	Conn int64 `json:",omitempty"`
	// Failed says why nothing was answered; empty: it was.
	Failed string `json:",omitempty"`
}

// Write gives an application its orders. folder is the node's, as the caller
// sees it.
func Write(folder, namespace, pod string, o Orders) error {
	content, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode orders: %w", err)
	}
	path := filepath.Join(folder, namespace, pod+".orders")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make folder of orders: %w", err)
	}
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		return fmt.Errorf("write orders: %w", err)
	}
	return os.Rename(path+".new", path)
}

// Read is for the application. Without a file there is nothing to do.
func Read(folder, namespace, pod string) (o Orders, err error) {
	content, err := os.ReadFile(filepath.Join(folder, namespace, pod+".orders"))
	if errors.Is(err, fs.ErrNotExist) {
		return o, nil
	}
	if err != nil {
		return o, fmt.Errorf("read orders: %w", err)
	}
	if err := json.Unmarshal(content, &o); err != nil {
		return o, fmt.Errorf("decode orders: %w", err)
	}
	return o, nil
}

// Tale is the path of what an application tells.
func Tale(folder, namespace, pod string) string {
	return filepath.Join(folder, namespace, pod+".tale")
}
