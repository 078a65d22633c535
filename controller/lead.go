package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

const (
	// leaseName of the Lease that the leader holds.
	leaseName = "controller"
	// A leader that does not renew for leaseDuration is succeeded; it ends at
	// renewDeadline, before that. Short, since nobody serves in between: data
	// planes go on with what they have, but learn nothing new.
	leaseDuration = 7 * time.Second
	renewDeadline = 5 * time.Second
	retryPeriod   = time.Second
)

// errLeaseLost ends the process: another one may lead by now. Its successor
// begins as every replica does, with nothing that it believes to know.
var errLeaseLost = errors.New("the Lease was lost: another replica may lead")

// leadership says whether this replica is the one that writes.
type leadership struct {
	held atomic.Bool
}

// lead waits to be elected, and does the leader's work until ctx ends or the
// term does, which is an error. The Lease is let go of once that work has ended,
// so that a successor need not wait for it to expire.
func (p *parts) lead(ctx, force context.Context) error {
	return p.leadWith(ctx, func(term context.Context) error { return p.leaderWork(term, force) })
}

// leadWith works for one term.
func (p *parts) leadWith(ctx context.Context, work func(term context.Context) error) error {
	election, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	terms := make(chan context.Context)
	elector, err := p.elector(terms)
	if err != nil {
		return err
	}
	over := make(chan struct{})
	go func() { elector.Run(election); close(over) }()
	defer func() { leave(); <-over }()

	select {
	case term := <-terms:
		term, end := context.WithCancel(term)
		defer end()
		defer context.AfterFunc(ctx, end)()
		if err := work(term); err != nil || ctx.Err() != nil {
			return err
		}
		return errLeaseLost
	case <-ctx.Done():
		return nil
	}
}

// elector sends a context on terms when this replica is elected; it ends with
// the term.
func (p *parts) elector(terms chan<- context.Context) (*leaderelection.LeaderElector, error) {
	lock, err := resourcelock.New(resourcelock.LeasesResourceLock, p.settings.namespace, leaseName,
		p.client.CoreV1(), p.client.CoordinationV1(), resourcelock.ResourceLockConfig{Identity: p.settings.podName})
	if err != nil {
		return nil, fmt.Errorf("make leader lease: %w", err)
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: leaseName, Lock: lock, ReleaseOnCancel: true,
		LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(term context.Context) {
				select {
				case terms <- term:
				case <-term.Done():
				}
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make leader elector: %w", err)
	}
	return elector, nil
}

// holdsLease is an error unless the API server says that this replica holds the Lease.
func (p *parts) holdsLease(ctx context.Context) error {
	lease, err := p.client.CoordinationV1().Leases(p.settings.namespace).Get(ctx, leaseName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read Lease %s: %w", leaseName, err)
	}
	if holder := lease.Spec.HolderIdentity; holder == nil || *holder != p.settings.podName {
		return errLeaseLost
	}
	return nil
}

// leaderWork is what only one replica may do: writing, and serving data planes,
// which acknowledge and report to one process.
func (p *parts) leaderWork(ctx, force context.Context) error {
	p.logger.Info("leading", "lease", leaseName)
	defer p.logger.Info("no longer leading", "lease", leaseName)

	group, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, func() { p.leadership.held.Store(false); p.bindings.stop() })()
	group.Go(func() error { return p.keeper.RunLeader(ctx) })
	group.Go(func() error { return p.revoker.RunLeader(ctx) })
	group.Go(func() error { return p.reports.Run(ctx) })
	group.Go(func() error { return p.status.RunLeader(ctx) })
	group.Go(func() error { return p.policies.RunLeader(ctx) })
	group.Go(func() error { return p.routes.RunLeader(ctx) })
	group.Go(func() error { return p.gateways.RunLeader(ctx) })
	group.Go(func() error {
		if err := p.takeOver(ctx); err != nil {
			return stopped(ctx, err)
		}
		p.leadership.held.Store(true)
		return p.serve(ctx, force, p.settings.grpc)
	})
	return group.Wait()
}

// bindingsRetry is how soon it is tried again to find out how far bindings are.
const bindingsRetry = time.Second

// takeBindingsOver goes on where the leader before was.
func (p *parts) takeBindingsOver(ctx context.Context) error {
	for {
		err := p.bindings.takeOver(ctx)
		if err == nil {
			return nil
		}
		p.logger.Error("bindings not taken over: tried again", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(bindingsRetry):
		}
	}
}

// takeOver waits until what is published is no older than what the leader before
// may have published.
func (p *parts) takeOver(ctx context.Context) error {
	began := time.Now()
	for _, known := range []<-chan struct{}{p.status.TakenOver(), p.revoker.Ready()} {
		select {
		case <-known:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := p.sources.CatchUp(ctx, p.logger); err != nil {
		return err
	}
	if err := p.takeBindingsOver(ctx); err != nil {
		return err
	}
	if err := p.publisher.fresh(ctx); err != nil {
		return err
	}
	p.logger.Info("took over", "duration", time.Since(began))
	return nil
}
