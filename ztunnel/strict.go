package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/pods"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
)

// startsStrict tells whether a pod is guarded from its first moment. One whose applications have not started loses nothing by
// it, and so is, unless it is known that it need not be; one that runs already waits for what its workload says.
func (d *dataplane) startsStrict(target pods.Target) bool {
	if target.Serving {
		return false
	}
	snapshot := d.store.Snapshot()
	if strict, known := snapshot.Strict(workload.PodUID(d.clusterID, target.Namespace, target.Name), target.Namespace); known {
		return strict
	}
	return !d.synced() || snapshot.Namespace(target.Namespace).MutualTLS == workload.StrictMutualTLS
}

// followStrictness keeps the guard of each pod as strict as its workload is to be, until the context ends. What a workload is to
// be that is not known is what it was.
func (d *dataplane) followStrictness(ctx context.Context) error {
	for {
		snapshot := d.store.Snapshot()
		var retry <-chan time.Time
		for _, c := range d.captured() {
			if strict, known := snapshot.Strict(c.uid, c.id.Namespace); known && !c.setStrict(strict) {
				retry = time.After(strictRetry)
			}
		}
		if known := d.refuseUnknown(snapshot); !known {
			retry = time.After(strictRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-snapshot.Changed():
		case <-d.started:
		case <-retry:
		}
	}
}

// refuseUnknown has connect(2) fail in pods that nobody knows, while there is a strict pod on the node, or one of a namespace that
// may have some. It tells whether that is settled.
func (d *dataplane) refuseUnknown(snapshot *workload.Snapshot) (settled bool) {
	opened, err := d.node.get()
	if err != nil {
		return false
	}
	namespaces, known := d.onNode()
	refuse := slices.ContainsFunc(namespaces, func(name string) bool {
		return snapshot.Namespace(name).MutualTLS == workload.StrictMutualTLS
	}) || slices.ContainsFunc(d.captured(), func(c *capture) bool { return c.strict != nil && *c.strict })
	if refuse && !known || !refuse && !d.synced() {
		return false // those that are to be left alone are noted first; and what held before holds until more is known
	}
	if err := opened.RefuseUnclassified(refuse); err != nil {
		d.logger.Error("unknown pods are not refused as they ought to be", "refuse", refuse, "error", err)
		return false
	}
	return true
}

// strictRetry is how soon a guard is turned again that could not be.
const strictRetry = time.Second

// captured returns the pods that are captured now.
func (d *dataplane) captured() []*capture {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]*capture, 0, len(d.captures))
	for _, c := range d.captures {
		all = append(all, c)
	}
	return all
}

// signalStarted has those who follow look at a pod that was just captured.
func (d *dataplane) signalStarted() {
	for _, follower := range []chan struct{}{d.started, d.startedEgress} {
		select {
		case follower <- struct{}{}:
		default:
		}
	}
}

// setStrict is for followStrictness alone. It tells whether the guard took it; where the guard is missing is looked after by
// itself.
func (c *capture) setStrict(strict bool) bool {
	if c.strict != nil && *c.strict == strict {
		return true
	}
	older := len(c.redirect.Precapture())
	was, err := c.redirect.Strict()
	if err == nil {
		err = c.redirect.SetStrict(strict, c.dataplane.grace)
	}
	if err != nil {
		c.logger.Error("guard of a pod not as it ought to be", "strict", strict, "error", err)
	}
	if is, err := c.redirect.Strict(); err != nil || is != strict {
		return false
	}
	c.strict = &strict
	if was == strict {
		return true
	}
	if strict && older > 0 {
		c.logger.Warn("pod is strict: connections older than its capture go on in plaintext, and end after the grace",
			"connections", older, "grace", c.dataplane.grace)
		return true
	}
	c.logger.Info("guard of a pod turned", "strict", strict)
	return true
}

// older are the connections from before their capture, by the workload's uid.
func (d *dataplane) older() map[string][]redirect.Flow {
	all := map[string][]redirect.Flow{}
	for _, c := range d.captured() {
		all[c.uid] = c.redirect.Precapture()
	}
	return all
}

// dumpedGuard is what leaves a captured pod besides what ztunnel carries.
type dumpedGuard struct {
	Pod    string `json:"pod"`
	Strict bool   `json:"strict"`
	// OneSided are devices where only the pod's end is guarded.
	OneSided []string `json:"guarded_at_one_end,omitempty"`
	// Older are the connections from before the capture: while the pod is not strict, those that would end if it turned.
	Older []dumpedOlder `json:"older_connections,omitempty"`
}

type dumpedOlder struct {
	Local  string `json:"local"`
	Remote string `json:"remote"`
}

func (d *dataplane) dumpGuards() any {
	all := []dumpedGuard{}
	for _, c := range d.captured() {
		g := dumpedGuard{Pod: c.uid, OneSided: c.redirect.OneSided()}
		g.Strict, _ = c.redirect.Strict()
		for _, f := range c.redirect.Precapture() {
			g.Older = append(g.Older, dumpedOlder{f.Local.String(), f.Remote.String()})
		}
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b dumpedGuard) int { return strings.Compare(a.Pod, b.Pod) })
	return all
}

// defaultGrace is for clients and servers that notice a deployment, not for whole batch jobs.
const defaultGrace = 30 * time.Second
