package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

const (
	// leaseName of the Lease that the leader holds.
	leaseName = "controller"
	// A leader that does not renew for leaseDuration is succeeded; it stops
	// writing at renewDeadline, before that.
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// leadership says whether this replica is the one that writes.
type leadership struct {
	held atomic.Bool
}

// lead takes part in elections until ctx ends, and does the leader's work while
// elected. The Lease is let go of once that work has ended, so that a successor
// need not wait for it to expire.
func (p *parts) lead(ctx context.Context) error {
	return p.leadWith(ctx, p.leaderWork)
}

func (p *parts) leadWith(ctx context.Context, work func(term context.Context) error) error {
	for ctx.Err() == nil {
		if err := p.leadOnce(ctx, work); err != nil {
			return err
		}
	}
	return nil
}

// leadOnce waits to be elected, and works for one term.
func (p *parts) leadOnce(ctx context.Context, work func(term context.Context) error) error {
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
		return work(term)
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

// leaderWork is what only one replica may do.
func (p *parts) leaderWork(ctx context.Context) error {
	p.leadership.held.Store(true)
	defer p.leadership.held.Store(false)
	p.logger.Info("leading", "lease", leaseName)
	defer p.logger.Info("no longer leading", "lease", leaseName)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.root.RunLeader(ctx) })
	group.Go(func() error { return p.reports.Run(ctx) })
	group.Go(func() error { return p.status.RunLeader(ctx) })
	group.Go(func() error { return p.policies.RunLeader(ctx) })
	return group.Wait()
}
