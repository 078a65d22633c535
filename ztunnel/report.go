package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ambit-mesh/ambit/api/report"
)

const (
	// heartbeatInterval: the controller calls a node stale after several are missing.
	heartbeatInterval = 5 * time.Second
	// A controller that does not answer, or does not lead, is asked again ever less often.
	reportRetryMin, reportRetryMax = 100 * time.Millisecond, 2 * time.Second
)

// observations are what the node has to report.
type observations interface {
	// Whole is closed once States has every pod of the node.
	Whole() <-chan struct{}
	// Changed has an element when a state changed.
	Changed() <-chan struct{}
	States() []*report.WorkloadState
	// Refresh has States tell of certificates and configuration as they are now.
	Refresh()
	// Problems of the node, coded.
	Problems() []string
	// Roots that the node's certificates chain to, by fingerprint.
	Roots() []string
}

// reporter tells the controller what the node observes, and takes its releases.
// It is level-based: a new stream is told everything, an open one whatever
// differs from what it was told.
type reporter struct {
	hello    *report.Hello
	conn     grpc.ClientConnInterface
	observed observations
	// release lets a pod go that has been withdrawing since then.
	release func(uid string, since time.Time)
	logger  *slog.Logger
}

// run reports until the context ends.
func (r *reporter) run(ctx context.Context) error {
	wait, said := reportRetryMin, ""
	for {
		started := time.Now()
		err := r.stream(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(started) > heartbeatInterval {
			wait, said = reportRetryMin, ""
		}
		// Once for each trouble, not for each time that it is met.
		if err.Error() != said {
			said = err.Error()
			r.logger.Warn("report stream ended", "error", err, "retry_in", wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, reportRetryMax)
	}
}

// stream is one stream to the controller.
func (r *reporter) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := report.NewReportServiceClient(r.conn).Report(ctx)
	if err != nil {
		cancel()
		return fmt.Errorf("open report stream: %w", err)
	}
	received := make(chan error, 1)
	go func() { received <- r.receive(stream) }()
	err = r.send(ctx, stream, received)
	cancel()
	if err == nil {
		err = <-received
	} else {
		<-received
	}
	return err
}

// receive takes releases until the stream ends.
func (r *reporter) receive(stream grpc.BidiStreamingClient[report.NodeReport, report.ControllerReply]) error {
	for {
		reply, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("receive from controller: %w", err)
		}
		if release := reply.GetRelease(); release != nil {
			r.logger.Info("pod released by controller", "uid", release.GetUid())
			r.release(release.GetUid(), release.GetWithdrawingSince().AsTime())
		}
	}
}

// send tells everything, then what changes. It returns nil when the stream
// ended: receiving says why.
func (r *reporter) send(ctx context.Context, stream grpc.BidiStreamingClient[report.NodeReport, report.ControllerReply], received chan error) error {
	told := &told{stream: stream, states: make(map[string]*report.WorkloadState)}
	if err := stream.Send(&report.NodeReport{Kind: &report.NodeReport_Hello{Hello: r.hello}}); err != nil {
		return nil
	}
	heartbeat := time.NewTicker(heartbeatInterval)
	defer heartbeat.Stop()
	beat := make(chan struct{}, 1)
	beat <- struct{}{} // the first at once
	whole, changed := r.observed.Whole(), (<-chan struct{})(nil)
	for {
		err := error(nil)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-received:
			received <- err
			return nil
		case <-beat:
			err = told.heartbeat(r.observed.Problems(), r.observed.Roots())
		case <-heartbeat.C:
			beat <- struct{}{}
			r.observed.Refresh()
			if whole == nil {
				err = told.tell(r.observed.States())
			}
		case <-changed:
			err = told.tell(r.observed.States())
		case <-whole:
			// From here on the states are all there are.
			whole, changed = nil, r.observed.Changed()
			r.observed.Refresh()
			err = told.all(r.observed.States())
		}
		if err != nil {
			return nil
		}
	}
}

// told is what the controller knows by one stream.
type told struct {
	stream grpc.BidiStreamingClient[report.NodeReport, report.ControllerReply]
	states map[string]*report.WorkloadState // by UID
}

func (t *told) heartbeat(problems, roots []string) error {
	return t.stream.Send(&report.NodeReport{Kind: &report.NodeReport_Heartbeat{Heartbeat: &report.Heartbeat{
		Problems: problems, Certificates: &report.Certificates{Roots: roots}, Now: timestamppb.Now(),
	}}})
}

// all tells every state, and that there are no others.
func (t *told) all(states []*report.WorkloadState) error {
	if err := t.tell(states); err != nil {
		return err
	}
	return t.stream.Send(&report.NodeReport{Kind: &report.NodeReport_SnapshotSent{SnapshotSent: &report.SnapshotSent{}}})
}

// tell sends what differs from what was told before.
func (t *told) tell(states []*report.WorkloadState) error {
	now := make(map[string]bool, len(states))
	for _, state := range states {
		now[state.GetUid()] = true
		if proto.Equal(t.states[state.GetUid()], state) {
			continue
		}
		if err := t.send(state); err != nil {
			return err
		}
		t.states[state.GetUid()] = state
	}
	for uid, state := range t.states {
		if now[uid] {
			continue
		}
		if err := t.send(&report.WorkloadState{Namespace: state.GetNamespace(), Name: state.GetName(), Uid: uid, Removed: true}); err != nil {
			return err
		}
		delete(t.states, uid)
	}
	return nil
}

func (t *told) send(state *report.WorkloadState) error {
	return t.stream.Send(&report.NodeReport{Kind: &report.NodeReport_Workload{Workload: state}})
}
