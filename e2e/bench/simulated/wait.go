package simulated

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/e2e/bench/simulated/apiserver"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// waitPoll is how often the mesh is looked at.
const waitPoll = 20 * time.Millisecond

// wait looks until what is looked at is as it shall be.
func wait(ctx context.Context, look func() error) error {
	for {
		err := look()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(waitPoll):
		}
	}
}

// WaitReady waits until all ztunnels are ready.
func (m *Mesh) WaitReady(ctx context.Context) error {
	for _, node := range m.config.Nodes {
		if err := m.ztunnels[node].WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// WaitCaptured waits until Kubernetes shows every pod of the mesh captured, and
// every ztunnel sends to the pods through the tunnel.
func (m *Mesh) WaitCaptured(ctx context.Context) error {
	if err := m.WaitReady(ctx); err != nil {
		return err
	}
	if err := m.WaitShown(ctx); err != nil {
		return err
	}
	for _, node := range m.config.Nodes {
		err := wait(ctx, func() error { return m.knowsTunnels(ctx, m.ztunnels[node]) })
		if err != nil {
			return fmt.Errorf("wait for configuration of node %s: %w", node, err)
		}
	}
	return nil
}

// WaitShown waits until Kubernetes shows every pod of the mesh captured. What
// the nodes know of each other may be older.
func (m *Mesh) WaitShown(ctx context.Context) error {
	for _, pod := range m.enrolled() {
		err := wait(ctx, func() error {
			shown := &v1alpha1.Workload{}
			if !apiserver.Get(m.api, Namespace, pod, shown) {
				return errors.New("it has no Workload")
			}
			if shown.Status.State != v1alpha1.StateCaptured || shown.Status.Protocol != v1alpha1.ProtocolHBONE {
				return fmt.Errorf("it is %s (%s), reached by %s", shown.Status.State, shown.Status.Reason, shown.Status.Protocol)
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("wait for capture of pod %s: %w", pod, err)
		}
	}
	return nil
}

// knowsTunnels looks whether a ztunnel knows all captured pods as such. With
// OnDemand it need not know those of other nodes.
func (m *Mesh) knowsTunnels(ctx context.Context, ztunnel *Process) error {
	var known []struct {
		UID      string
		Protocol workload.Protocol
	}
	if err := ztunnel.Dump(ctx, "workloads", &known); err != nil {
		return err
	}
	byUID := make(map[string]workload.Protocol, len(known))
	for _, w := range known {
		byUID[w.UID] = w.Protocol
	}
	for _, pod := range m.enrolled() {
		protocol, ok := byUID[workload.PodUID(m.values().ClusterID, Namespace, pod)]
		if ok && protocol != workload.HBONE || !ok && !m.config.OnDemand {
			return fmt.Errorf("pod %s is known: %t, as reached by %s", pod, ok, protocol)
		}
	}
	return nil
}
