package pods

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/atomicfile"
)

// saved is one captured pod in the file that the next process reads, so that
// it serves again before Kubernetes has answered.
type saved struct {
	UID            string       `json:"uid"`
	Namespace      string       `json:"namespace"`
	Name           string       `json:"name"`
	ServiceAccount string       `json:"serviceAccount"`
	IPs            []netip.Addr `json:"ips"`
	NetNS          string       `json:"netns"`
	Inode          uint64       `json:"inode"`
	ContainerID    string       `json:"containerID,omitempty"`
	DNSCapture     string       `json:"dnsCapture,omitempty"` // the annotation's value
}

type savedFile struct {
	Pods []saved `json:"pods"`
}

// adoptSaved has workers take up again what the last process captured. Only a
// sandbox that is still there counts, and only with its pins: after a power cut
// there are none.
func (p *Pods) adoptSaved() {
	content, err := os.ReadFile(p.config.SavedPath)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var file savedFile
	if err == nil {
		err = json.Unmarshal(content, &file)
	}
	if err != nil {
		// Kubernetes will tell the same, a little later.
		p.logger.Warn("captured pods of the last process not known", "path", p.config.SavedPath, "error", err)
		return
	}
	pinned := p.config.Dataplane.Pinned()
	for _, pod := range file.Pods {
		sandbox := Sandbox{Path: pod.NetNS, Inode: pod.Inode, IPs: pod.IPs, ContainerID: pod.ContainerID}
		if !slices.Contains(pinned, pod.UID) || !p.isThere(sandbox) {
			continue
		}
		p.mu.Lock()
		if w := p.ensureLocked(pod.UID); w != nil {
			w.facts.namespace, w.facts.name, w.facts.serviceAccount = pod.Namespace, pod.Name, pod.ServiceAccount
			w.facts.alive, w.facts.sandbox, w.facts.ips = true, &sandbox, pod.IPs
			w.facts.told, w.facts.dnsCapture = time.Now(), pod.DNSCapture
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
		if w.running == nil {
			continue
		}
		file.Pods = append(file.Pods, saved{
			UID: uid, Namespace: w.facts.namespace, Name: w.facts.name, ServiceAccount: w.facts.serviceAccount,
			IPs: w.sandbox.IPs, NetNS: w.sandbox.Path, Inode: w.sandbox.Inode, ContainerID: w.sandbox.ContainerID,
			DNSCapture: w.facts.dnsCapture,
		})
	}
	p.mu.Unlock()
	slices.SortFunc(file.Pods, func(a, b saved) int { return strings.Compare(a.UID, b.UID) })
	content, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return fmt.Errorf("encode captured pods: %w", err)
	}
	return atomicfile.Write(p.config.SavedPath, append(content, '\n'), 0o600)
}
