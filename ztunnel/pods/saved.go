package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/statefile"
)

// saved is one enrolled pod in the file that the next process reads, so that it
// serves it again before Kubernetes has answered: in the sandbox that the pod
// had, or in one that the CNI plugin brings.
type saved struct {
	UID            string `json:"uid"`
	Namespace      string `json:"namespace"`
	Name           string `json:"name"`
	ServiceAccount string `json:"serviceAccount"`
	// IPs, NetNS, Inode and ContainerID are of the sandbox that was captured;
	// none for a pod between two sandboxes.
	IPs         []netip.Addr `json:"ips,omitempty"`
	NetNS       string       `json:"netns,omitempty"`
	Inode       uint64       `json:"inode,omitempty"`
	ContainerID string       `json:"containerID,omitempty"`
	// Ungated is how it began in its sandbox, where that was without the gate.
	Ungated *ungated `json:"ungated,omitempty"`
	// DNSCapture is the annotation's value.
	DNSCapture string `json:"dnsCapture,omitempty"`
}

type savedFile struct {
	Pods []saved `json:"pods"`
}

// savedKind of file: half a KiB a pod, of a few hundred pods.
var savedKind = statefile.Kind{Name: "pods", Version: 1, MaxBytes: 16 << 20}

// adoptSaved has workers take up again what the last process captured. Only a
// sandbox that is still there counts, and only with its pins: after a power cut
// there are none. Of the others it is remembered that they are of the mesh.
func (p *Pods) adoptSaved() {
	content, err := savedKind.Read(p.config.SavedPath)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var file savedFile
	if err == nil {
		err = json.Unmarshal(content, &file)
	}
	if err != nil {
		// Kubernetes will tell the same, a little later; without it, what is pinned
		// goes on refusing.
		p.logger.Error("captured pods of the last process not known", "path", p.config.SavedPath, "error", err)
		return
	}
	pinned := p.config.Dataplane.Pinned()
	for _, pod := range file.Pods {
		sandbox := Sandbox{Path: pod.NetNS, Inode: pod.Inode, IPs: pod.IPs, ContainerID: pod.ContainerID}
		goesOn := slices.Contains(pinned, pod.UID) && p.isThere(sandbox)
		p.mu.Lock()
		if w := p.ensureLocked(pod.UID); w != nil {
			w.facts.namespace, w.facts.name, w.facts.serviceAccount = pod.Namespace, pod.Name, pod.ServiceAccount
			w.facts.alive, w.facts.remembered, w.facts.dnsCapture = true, true, pod.DNSCapture
			w.facts.moved = pod.NetNS != "" && !goesOn
			if goesOn {
				w.ungated = pod.Ungated
				w.facts.sandbox, w.facts.ips, w.facts.told = &sandbox, pod.IPs, time.Now()
			}
			w.wake()
		}
		p.mu.Unlock()
	}
}

func (p *Pods) requestSave() {
	select {
	case p.saves <- struct{}{}:
	default:
	}
}

// saveRetry is how soon a file that could not be written is tried again.
const saveRetry = time.Second

// save writes the file after each change, and once more at the end.
func (p *Pods) save(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			p.saveOnce()
			return
		case <-p.saves:
		}
		if p.saveOnce() {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(saveRetry):
			p.requestSave()
		}
	}
}

func (p *Pods) saveOnce() bool {
	err := p.writeSaved()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && p.saveError == nil {
		p.logger.Error("captured pods not saved", "error", err)
	}
	p.saveError = err
	return err == nil
}

func (p *Pods) writeSaved() error {
	var file savedFile
	p.mu.Lock()
	for uid, w := range p.workers {
		pod := saved{UID: uid, Namespace: w.facts.namespace, Name: w.facts.name, ServiceAccount: w.facts.serviceAccount, DNSCapture: w.facts.dnsCapture}
		switch {
		case w.running != nil:
			pod.IPs, pod.NetNS, pod.Inode, pod.ContainerID = w.sandbox.IPs, w.sandbox.Path, w.sandbox.Inode, w.sandbox.ContainerID
			pod.Ungated = w.ungated
		case !w.facts.alive || (w.facts.mode != Enrolled && !w.facts.remembered):
			continue
		}
		file.Pods = append(file.Pods, pod)
	}
	p.mu.Unlock()
	slices.SortFunc(file.Pods, func(a, b saved) int { return strings.Compare(a.UID, b.UID) })
	content, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return fmt.Errorf("encode captured pods: %w", err)
	}
	return savedKind.Write(p.config.SavedPath, append(content, '\n'))
}
