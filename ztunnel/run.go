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
		onNode: func() ([]string, bool) { return z.pods.Namespaces(), closed(z.pods.Ready()) }, started: make(chan struct{}, 1), startedEgress: make(chan struct{}, 1),
		quotas: accept.NewQuotas(s.Limits), shares: z.shares(), logger: z.logger, captures: make(map[string]*capture),
		tunnelled: tunnelled{most: bpf.MaxTunnelled},
	}
	z.pods = pods.New(pods.Config{
		Node: s.NodeName, NeverHeld: s.NeverHeld, Client: z.client, Dataplane: z.dataplane,
		Namespaces: podNamespaces{dir: s.NetNSDir}, NetNSDir: s.NetNSDir,
		SavedPath: s.capturedPods(), EnrolmentPath: s.enrolment(), Logger: z.logger,
	})
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
		trustDomain: z.settings.TrustDomain, clusterID: z.settings.ClusterID,
		sources: []func() []string{z.node.problems, z.dataplane.problems, z.cni.Problems, z.pods.Problems, z.roots.problems, z.locker.Problems, z.feed.Problems, z.resolverProblems},
	}
	z.reporter.observed, z.reporter.release = z.observed, z.pods.Release
	z.dumps()
	return z.register()
}

// run starts what compose made, waits for the end, and drains.
func (z *ztunnel) run(running, force context.Context) error {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(running))
	defer cancel(nil)
	var group sync.WaitGroup
	part := func(name string, run func(context.Context) error) {
		group.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	z.gates(ctx, &group)
	// First: until it is known as ztunnel's, this process's network may be one that is refused.
	redirects := z.node.try()
	part("admin", func(ctx context.Context) error { return z.admin.Run(ctx, adminAddress) })
	part("metrics", func(ctx context.Context) error { return z.metrics.Run(ctx, metricsAddress) })
	part("readiness", func(ctx context.Context) error { return z.readiness.Run(ctx, readinessAddress) })
	part("roots", func(ctx context.Context) error { return z.roots.watch(ctx, z.client, z.settings.PodNamespace) })
	part("feed", z.feed.Run)
	part("certificates", z.certs.Run)
	part("locker", z.locker.Run)
	part("policy", z.policy.Run)
	part("chain entry", z.cni.Run)
	// Before the pods, which ask what an earlier process left.
	if !redirects {
		group.Go(func() { z.node.run(ctx, z.pods.Retry) })
	}
	part("pods", z.pods.Run)
	part("guards", z.dataplane.followStrictness)
	part("tunnels alone", z.dataplane.followTunnelled)
	part("egress", z.dataplane.followEgress)
	part("names", func(ctx context.Context) error { return z.dataplane.names.run(ctx, z.dataplane.captured) })
	part("CNI socket", func(ctx context.Context) error { return z.pods.ServeCNI(ctx, z.settings.cniSocket()) })
	part("report", z.reporter.run)
	z.followBundle(ctx, &group)
	group.Go(func() {
		select {
		case <-z.pods.Ready():
			z.certs.RetainKept() // all that the node's pods need is wanted by now
		case <-ctx.Done():
		}
	})
	group.Go(func() { onConnect(ctx, z.feed.Connected, z.controllerIsBack) })

	select {
	case <-running.Done():
		z.linger(ctx, force)
	case <-ctx.Done():
	}
	cause := context.Cause(ctx)
	cancel(nil)
	group.Wait()
	drained, stop := context.WithTimeout(force, cutBefore)
	defer stop()
	z.pods.Drain(drained)
	return errors.Join(cause, z.relay.Close(), z.node.close())
}

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
	// lingerPoll is how often it is looked whether connections are left.
	lingerPoll = 100 * time.Millisecond
)

// linger goes on as before while connections live and Kubernetes' patience
// lasts: a new connection is better served by a process that ends soon than
// kept waiting for the next.
func (z *ztunnel) linger(ctx, force context.Context) {
	patience := max(0, z.settings.Grace-killMargin-cutBefore)
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
		case <-time.After(lingerPoll):
		}
	}
}
