package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/ambit-mesh/ambit/api/report"
	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/internal/atomicfile"
	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/controlplane"
	"github.com/ambit-mesh/ambit/internal/daemon"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/feed"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/cniinstall"
	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
	"github.com/ambit-mesh/ambit/ztunnel/kube"
	"github.com/ambit-mesh/ambit/ztunnel/locker"
	"github.com/ambit-mesh/ambit/ztunnel/pods"
	"github.com/ambit-mesh/ambit/ztunnel/policy"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
	"github.com/ambit-mesh/ambit/ztunnel/succession"
)

// Addresses of the component's own servers. The first is for the pod alone.
const (
	adminAddress     = "127.0.0.1:15000"
	metricsAddress   = ":15020"
	readinessAddress = ":15021"
)

// certificateTTL is what certificates are asked for.
const certificateTTL = 24 * time.Hour

// ztunnel is all parts of the process, composed.
type ztunnel struct {
	settings settings
	logger   *slog.Logger

	admin     *daemon.Admin
	metrics   *daemon.Metrics
	readiness *daemon.Readiness

	client    *kube.Client
	node      *node
	roots     *roots
	store     *workload.Store
	feed      *feed.Client
	locker    *locker.Locker
	certs     *certs.Store
	conns     *conns.Registry
	relay     *relay.Relay
	endpoints *endpoints.Registry
	resolvers *dns.File
	policy    *policy.Enforcer
	dataplane *dataplane
	pods      *pods.Pods
	heir      *succession.Heir
	cni       *cniinstall.Installer
	observed  *observedPods
	reporter  *reporter
}

// run composes everything and runs it until running ends, then drains; force
// ends that early.
func run(running, force context.Context, s settings, logger *slog.Logger, level *slog.LevelVar) error {
	z, err := compose(s, logger, level)
	if err != nil {
		return err
	}
	klog.SetSlogLogger(logger) // what the Kubernetes client says, in the same log
	logger.Info("ztunnel starts", "version", daemon.Version, "node", s.NodeName, "controller", s.Controller)
	return z.run(running, force)
}

// compose makes the parts, each from those before it. Nothing runs yet.
func compose(s settings, logger *slog.Logger, level *slog.LevelVar) (*ztunnel, error) {
	for _, dir := range []string{s.StateDir, s.RunDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make folder: %w", err)
		}
	}
	if err := atomicfile.Sweep(s.StateDir); err != nil {
		logger.Warn("what a killed process was writing stays", "error", err)
	}
	client, err := kubernetesClient()
	if err != nil {
		return nil, err
	}
	z := &ztunnel{
		settings: s, logger: logger, client: client,
		admin: daemon.NewAdmin(logger, level), metrics: daemon.NewMetrics(), readiness: daemon.NewReadiness(),
	}
	z.node = newNode(func() (*redirect.Redirect, error) {
		config := s.redirection()
		config.KubeletPort, config.Logger = s.KubeletPort, logger
		return redirect.Open(config)
	}, logger)
	z.store = workload.NewStore()
	z.roots = newRoots(s.rootCert(), z.store, logger)
	if err := z.composeController(); err != nil {
		return nil, err
	}
	if err := z.composePods(); err != nil {
		return nil, err
	}
	return z, z.composeReport()
}

func kubernetesClient() (*kube.Client, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("find Kubernetes: %w", err)
	}
	config.UserAgent = "ambit-ztunnel/" + daemon.Version
	// The gate asks once or twice for a new pod: a node starts no more than this.
	config.QPS, config.Burst = 50, 100
	return kube.New(config)
}

// composeController: what comes from the controller.
func (z *ztunnel) composeController() error {
	s := z.settings
	token := controlplane.TokenFile(s.TokenPath)
	var err error
	z.feed, err = feed.New(feed.Config{
		Address: s.Controller,
		Node: feed.Node{
			Role: "ztunnel", PodName: s.PodName, Namespace: s.PodNamespace, NodeName: s.NodeName, ClusterID: s.ClusterID, IPs: []netip.Addr{s.PodIP},
		},
		Roots: z.roots.pool, Revoked: z.roots.revoked, Token: token, Store: z.store, OnDemand: s.OnDemand, SnapshotPath: s.snapshot(),
		Logger: z.logger, Registerer: z.metrics.Registry,
	})
	if err != nil {
		return err
	}
	conn, err := controlplane.Dial(s.Controller, s.ClusterID, z.roots.pool, z.roots.revoked, token)
	if err != nil {
		return err
	}
	z.locker = locker.New(s.keys(), z.logger)
	z.certs = certs.New(certs.Config{
		Fetch: certs.FetchFrom(conn, certificateTTL), Bundle: z.roots.bundle, Retiring: z.roots.retiring, Revoked: z.roots.revoked, Locker: z.locker, Logger: z.logger, Registerer: z.metrics.Registry,
	})
	z.reporter = &reporter{
		hello:  &report.Hello{Node: s.NodeName, PodName: s.PodName, Version: daemon.Version},
		conn:   conn,
		logger: z.logger,
	}
	return nil
}

// composePods: the pods of the node, and how they are captured.
func (z *ztunnel) composePods() error {
	s := z.settings
	var err error
	if z.relay, err = relay.New(); err != nil {
		return err
	}
	z.conns = conns.New(conns.Config{Logger: z.logger, Registerer: z.metrics.Registry})
	z.resolvers = dns.NewFile(s.ResolvConf, z.logger)
	dnsMetrics := dns.NewMetrics(z.metrics.Registry)
	z.endpoints = endpoints.New(endpoints.Config{Logger: z.logger, Registerer: z.metrics.Registry})
	z.policy = policy.New(policy.Config{Snapshot: z.store.Snapshot, Synced: z.feed.Synced(), Logger: z.logger, Registerer: z.metrics.Registry})
	z.dataplane = &dataplane{
		node: z.node, trustDomain: s.TrustDomain, clusterID: s.ClusterID, nodeName: s.NodeName,
		certs: z.certs, store: z.store, feed: z.feed, conns: z.conns, relay: z.relay, endpoints: z.endpoints, pools: pool.NewMetrics(z.metrics.Registry),
		resolver: dns.NewResolver(z.resolvers.Servers, dnsMetrics), dnsMetrics: dnsMetrics, egress: egress.NewMetrics(z.metrics.Registry), names: readNames(s.names(), z.logger),
		policy: z.policy, grace: s.StrictGrace, synced: func() bool { return closed(z.feed.Synced()) }, netNSDir: s.NetNSDir,
		onNode: func() ([]string, bool) { return z.pods.Namespaces(), closed(z.pods.Ready()) }, settled: func() <-chan struct{} { return z.pods.Ready() }, started: make(chan struct{}, 1), startedEgress: make(chan struct{}, 1),
		quotas: accept.NewQuotas(s.Limits), shares: z.shares(), logger: z.logger, captures: make(map[string]*capture), another: make(chan struct{}),
		tunnelled: tunnelled{most: bpf.MaxTunnelled},
	}
	z.pods = pods.New(pods.Config{
		Node: s.NodeName, NeverHeld: s.NeverHeld, Client: z.client, Dataplane: z.dataplane,
		Namespaces: podNamespaces{dir: s.NetNSDir}, NetNSDir: s.NetNSDir,
		SavedPath: s.capturedPods(), EnrolmentPath: s.enrolment(), Logger: z.logger,
	})
	z.heir = succession.New(s.succession(), z.logger)
	z.cni = cniinstall.New(cniinstall.Config{
		Plugin: s.CNIPlugin, BinDir: s.CNIBinDir, ConfDir: s.CNIConfig,
		// Paths of the node, where the plugin runs: the same as in this container.
		Entry:  cniproto.ChainEntry{Socket: s.cniSocket(), EnrolmentFile: s.enrolment(), ExcludedNamespaces: s.NeverHeld},
		Logger: z.logger,
	})
	return nil
}

// composeReport: what the controller, the operator and the kubelet see.
func (z *ztunnel) composeReport() error {
	z.observed = &observedPods{
		pods: z.pods, expires: z.certs.Expires, serial: z.certs.Serial, roots: z.certs.Roots, snapshot: z.store.Snapshot,
		trustDomain: z.settings.TrustDomain, clusterID: z.settings.ClusterID, older: z.dataplane.older,
		sources: []func() []string{z.node.problems, z.dataplane.problems, z.cni.Problems, z.pods.Problems, z.roots.problems, z.locker.Problems, z.feed.Problems, z.resolverProblems},
	}
	z.reporter.observed, z.reporter.release = z.observed, z.pods.Release
	z.dumps()
	return z.register()
}

// run starts what compose made, waits for the end or for the next process, and
// drains.
func (z *ztunnel) run(running, force context.Context) error {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(running))
	defer cancel(nil)
	// What looks after the node ends earlier, once the next process does.
	managing, cede := context.WithCancel(ctx)
	defer cede()
	carriers, managers := &parts{end: cancel}, &parts{end: cancel}

	before, err := succession.Find(z.settings.succession())
	if err != nil {
		return err
	}
	z.gates(ctx, &carriers.group)
	// First: until it is known as ztunnel's, this process's network may be one that
	// is refused. Beside another ztunnel it is known as a pod's that is let connect.
	redirects := before == nil && z.node.try()
	z.carry(ctx, carriers)
	if before != nil {
		if err := z.takeOver(running, before); err != nil {
			cancel(err)
			carriers.group.Wait()
			return errors.Join(err, z.relay.Close())
		}
		redirects = z.node.try()
	}
	z.manage(managing, managers, redirects)
	carriers.run(ctx, "succession", z.heir.Wait)
	if before != nil {
		managers.group.Go(func() {
			select {
			case <-z.pods.Ready():
				before.Captured()
			case <-managing.Done():
			}
		})
	}

	select {
	case <-running.Done():
		z.linger(ctx, force)
	case <-ctx.Done():
	case <-z.heir.Asked():
	}
	cede()
	managers.group.Wait()
	if ctx.Err() == nil && closed(z.heir.Asked()) {
		if err := z.bequeath(ctx, running, force); err != nil {
			cancel(err)
		}
	} else {
		drained, stop := context.WithTimeout(force, cutBefore)
		defer stop()
		z.pods.Drain(drained)
	}
	cause := context.Cause(ctx)
	cancel(nil)
	carriers.group.Wait()
	return errors.Join(cause, z.relay.Close(), z.node.close())
}

// parts run until their context ends; one that fails ends the process.
type parts struct {
	end   context.CancelCauseFunc
	group sync.WaitGroup
}

func (p *parts) run(ctx context.Context, name string, run func(context.Context) error) {
	p.group.Go(func() {
		if err := run(ctx); err != nil && ctx.Err() == nil {
			p.end(fmt.Errorf("%s: %w", name, err))
		}
	})
}

// carry starts what live connections need.
func (z *ztunnel) carry(ctx context.Context, p *parts) {
	p.run(ctx, "admin", func(ctx context.Context) error { return z.admin.Run(ctx, adminAddress) })
	p.run(ctx, "metrics", func(ctx context.Context) error { return z.metrics.Run(ctx, metricsAddress) })
	p.run(ctx, "readiness", func(ctx context.Context) error { return z.readiness.Run(ctx, readinessAddress) })
	p.run(ctx, "roots", func(ctx context.Context) error { return z.roots.watch(ctx, z.client, z.settings.PodNamespace) })
	p.run(ctx, "feed", z.feed.Run)
	p.run(ctx, "certificates", z.certs.Run)
	p.run(ctx, "locker", z.locker.Run)
	p.run(ctx, "policy", z.policy.Run)
	p.run(ctx, "egress", z.dataplane.followEgress)
	z.followBundle(ctx, &p.group)
	p.group.Go(func() { onConnect(ctx, z.feed.Connected, z.controllerIsBack) })
}

// manage starts what looks after the node.
func (z *ztunnel) manage(ctx context.Context, p *parts, redirects bool) {
	p.run(ctx, "chain entry", z.cni.Run)
	// Before the pods, which ask what an earlier process left.
	if !redirects {
		p.group.Go(func() { z.node.run(ctx, z.pods.Retry) })
	}
	p.run(ctx, "pods", z.pods.Run)
	p.run(ctx, "guards", z.dataplane.followStrictness)
	p.run(ctx, "tunnels alone", z.dataplane.followTunnelled)
	p.run(ctx, "names", func(ctx context.Context) error { return z.dataplane.names.run(ctx, z.dataplane.captured) })
	p.run(ctx, "CNI socket", func(ctx context.Context) error { return z.pods.ServeCNI(ctx, z.settings.cniSocket()) })
	p.run(ctx, "report", z.reporter.run)
	p.group.Go(func() {
		select {
		case <-z.pods.Ready():
			z.certs.RetainKept() // all that the node's pods need is wanted by now
		case <-ctx.Done():
		}
	})
}

// takeOver takes the node over from the ztunnel that looks after it, as soon as
// this one could serve, or that one is gone.
func (z *ztunnel) takeOver(running context.Context, before *succession.Predecessor) error {
	z.logger.Info("another ztunnel looks after the node: takes over once this one is configured")
	select {
	case <-z.feed.Synced():
	case <-before.Gone():
	case <-running.Done():
		return running.Err()
	}
	if err := before.TakeOver(running); err != nil {
		// It hangs. What it had captured is taken from it, whether it likes it or not.
		z.logger.Warn("the ztunnel before does not answer", "error", err)
	}
	z.dataplane.names.read()
	return nil
}

// bequeath leaves the node to the next process, and carries the connections that
// are left until the last has ended, or Kubernetes' patience. Should the next
// process end before this one is told to, or hang, somebody has to look after the node
// again: a new process, which an error asks the kubelet for.
func (z *ztunnel) bequeath(ctx, running, force context.Context) error {
	z.logger.Info("the next ztunnel takes over: carries what is left", "connections", len(z.conns.Live()))
	z.dataplane.ceded.Store(true)
	if opened, _ := z.node.get(); opened != nil {
		opened.Cede()
	}
	z.heir.Cede()
	drained, stop := context.WithCancel(force)
	defer stop()
	// While it is not told to end, its connections have all the time that they want.
	ending := context.AfterFunc(running, func() {
		time.AfterFunc(max(0, z.settings.Grace-killMargin), stop)
	})
	defer ending()
	late := time.NewTimer(heirPatience)
	defer late.Stop()
	select {
	case <-z.heir.Captured():
	case <-z.heir.Lost():
		if running.Err() == nil {
			return errors.New("the next ztunnel ended before it had captured the node's pods")
		}
	case <-late.C:
		if running.Err() == nil {
			return fmt.Errorf("the next ztunnel has not captured the node's pods in %s", heirPatience)
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-drained.Done():
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		z.pods.Drain(drained)
	}()
	carrying, ended, lost := over, running.Done(), z.heir.Lost()
	for carrying != nil || ended != nil {
		select {
		case <-carrying:
			z.logger.Info("nothing is left to carry")
			carrying = nil // a process that ended before it is told to would be started again
		case <-ended:
			ended, lost = nil, nil
		case <-lost:
			stop()
			<-over
			return errors.New("the next ztunnel ended: somebody has to look after the node again")
		case <-ctx.Done():
			stop()
			<-over
			return context.Cause(ctx)
		}
	}
	return nil
}

// heirPatience is many times what a process takes that captures a node full of pods.
const heirPatience = 5 * time.Minute

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// gates opens readiness as its conditions come true.
func (z *ztunnel) gates(ctx context.Context, group *sync.WaitGroup) {
	redirecting := make(chan struct{})
	group.Go(func() {
		defer close(redirecting)
		for opened, _ := z.node.get(); opened == nil && ctx.Err() == nil; opened, _ = z.node.get() {
			time.Sleep(gatePoll)
		}
	})
	for name, condition := range map[string]<-chan struct{}{
		"redirection open":       redirecting,
		"pods captured":          z.pods.Ready(),
		"configuration synced":   z.feed.Synced(),
		"CNI chain entry placed": z.cni.Installed(),
	} {
		open := z.readiness.Gate(name)
		group.Go(func() {
			select {
			case <-condition:
				if ctx.Err() == nil {
					open()
				}
			case <-ctx.Done():
			}
		})
	}
}

const gatePoll = 50 * time.Millisecond

// connectPoll is how soon it is noticed that the controller is back.
const connectPoll = 500 * time.Millisecond

// onConnect calls act whenever connected becomes true.
func onConnect(ctx context.Context, connected func() bool, act func()) {
	ticker := time.NewTicker(connectPoll)
	defer ticker.Stop()
	for before := false; ; {
		now := connected()
		if now && !before {
			act()
		}
		before = now
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// controllerIsBack ends the pauses of what failed for want of the controller:
// certificates, and with them the capture of pods that wait for theirs.
func (z *ztunnel) controllerIsBack() {
	z.certs.BundleChanged()
	z.pods.Retry()
}

// followBundle has held certificates, and the peers of live tunnels, judged anew
// when the trust bundle or what is revoked changes.
func (z *ztunnel) followBundle(ctx context.Context, group *sync.WaitGroup) {
	group.Go(func() {
		before := z.store.Snapshot()
		z.certs.BundleChanged() // a certificate may have been in use before what was saved was read
		for {
			select {
			case <-ctx.Done():
				return
			case <-before.Changed():
			}
			now := z.store.Snapshot()
			if !sameRoots(before.TrustBundle(), now.TrustBundle()) || !slices.Equal(before.RetiringRoots(), now.RetiringRoots()) || before.Revoked() != now.Revoked() {
				z.certs.BundleChanged()
			}
			before = now
		}
	})
}

const (
	// killMargin is left of Kubernetes' grace for the end itself.
	killMargin = 5 * time.Second
	// cutBefore is how long, at the very end, nothing new is accepted: time for
	// short exchanges to end, and no more than a handshake's first repetitions.
	cutBefore = 3 * time.Second
	// lingerAtMost bounds that without a next process: as long as short exchanges
	// need. Who takes ztunnel off a node does not wait for the long ones.
	lingerAtMost = 22 * time.Second
	// lingerPoll is how often it is looked whether connections are left.
	lingerPoll = 100 * time.Millisecond
)

// linger goes on as before while connections live and Kubernetes' patience
// lasts, unless the next process takes over: a new connection is better served by
// a process that ends soon than kept waiting for the next.
func (z *ztunnel) linger(ctx, force context.Context) {
	patience := min(lingerAtMost, max(0, z.settings.Grace-killMargin-cutBefore))
	z.logger.Info("told to end: carries on while connections live", "connections", len(z.conns.Live()), "at_most", patience)
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for len(z.conns.Live()) > 0 {
		select {
		case <-deadline.C:
			return
		case <-force.Done():
			return
		case <-ctx.Done():
			return
		case <-z.heir.Asked():
			return
		case <-time.After(lingerPoll):
		}
	}
}
