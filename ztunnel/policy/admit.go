package policy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/internal/conns"
)

// Admit decides on a connection that wants in. Its destination is the pod, as its
// node knows it, which then becomes what is published of it; if it is let in or
// denied by a policy, the attempt says by which. An error is a *conns.Failure.
func (e *Enforcer) Admit(ctx context.Context, a *conns.Attempt) error {
	j, err := e.settle(ctx, a)
	if err == nil && j.refusal != nil {
		err = j.refusal
	}
	e.metrics.decided(j, err)
	if j.policy != nil {
		a.Policy = j.policy.Name
	}
	if len(j.wouldDeny) > 0 && err == nil {
		e.dryRuns.report(a, j.wouldDeny)
	}
	return err
}

// settle waits until a judgement can be given that stays, or for holdTime.
func (e *Enforcer) settle(ctx context.Context, a *conns.Attempt) (judgement, error) {
	var late <-chan time.Time
	for {
		snapshot := e.cfg.Snapshot()
		var j judgement
		var missing error
		if !e.synced() {
			missing = conns.Fail(conns.PolicyMissing, errors.New("no configuration has come yet"))
		} else if w, ok := published(snapshot, a); !ok {
			missing = conns.Fail(conns.PolicyMissing, fmt.Errorf("nothing has come yet about workload %s, so that nobody knows which policies apply", a.Destination.Workload.UID))
		} else {
			a.Destination.Workload = w
			r := rulesFor(snapshot, w)
			if j = r.judge(a); !j.missing() {
				return j, nil
			}
			missing = j.refusal
		}
		if late == nil {
			timer := time.NewTimer(holdTime)
			defer timer.Stop()
			late = timer.C
		}
		synced := e.cfg.Synced
		if e.synced() {
			synced = nil // it would never let us wait
		}
		select {
		case <-snapshot.Changed():
		case <-synced:
		case <-late:
			return judgement{}, missing
		case <-ctx.Done():
			return judgement{}, missing
		}
	}
}
