package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/controller/ca"
	"github.com/ambit-mesh/ambit/controller/gateway"
	"github.com/ambit-mesh/ambit/controller/gatewayapi"
	"github.com/ambit-mesh/ambit/controller/policy"
	"github.com/ambit-mesh/ambit/controller/push"
	"github.com/ambit-mesh/ambit/controller/report"
	"github.com/ambit-mesh/ambit/controller/resource"
	"github.com/ambit-mesh/ambit/controller/routes"
	"github.com/ambit-mesh/ambit/controller/status"
	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/controller/watch"
	"github.com/ambit-mesh/ambit/internal/daemon"
)

const (
	// Requests to the API server: a namespace of 1,000 pods that is labelled is
	// 2,000 writes. The API server has its own means against too many.
	requestsPerSecond = 200
	requestBurst      = 400
)

// run one controller until ctx ends; force ends what takes too long after that.
func run(ctx, force context.Context, s settings, logger *slog.Logger, level *slog.LevelVar) error {
	config, err := restConfig(s.kubeconfig)
	if err != nil {
		return err
	}
	admin, metrics, readiness := daemon.NewAdmin(logger, level), daemon.NewMetrics(), daemon.NewReadiness()
	parts, err := assemble(s, config, metrics.Registry, logger)
	if err != nil {
		return err
	}
	admin.Dump("push", func() any { return parts.push.Dump() })

	rootKnown := readiness.Gate("root certificate")
	objectsKnown := readiness.Gate("Kubernetes objects")
	workloadsKnown := readiness.Gate("Workload objects")
	parts.publisher.published = readiness.Gate("first publication")

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return admin.Run(ctx, s.admin) })
	group.Go(func() error { return metrics.Run(ctx, s.metrics) })
	group.Go(func() error { return readiness.Run(ctx, s.readiness) })
	group.Go(func() error { return parts.sources.Run(ctx) })
	group.Go(func() error { return parts.status.Run(ctx) })

	// What is served is made from these: one after the other, all of them first.
	group.Go(func() error {
		if err := parts.openAuthority(ctx); err != nil {
			return stopped(ctx, err)
		}
		rootKnown()
		if err := parts.sources.WaitSynced(ctx); err != nil {
			return stopped(ctx, err)
		}
		objectsKnown()
		// Seeds what is captured: without it, HBONE would turn into plaintext.
		if err := parts.status.WaitSynced(ctx); err != nil {
			return stopped(ctx, err)
		}
		workloadsKnown()
		logger.Info("everything known", "namespace", s.namespace, "trust_domain", s.trustDomain)

		parts.changes.Changed()
		group.Go(func() error { return parts.root.Run(ctx) })
		group.Go(func() error { return parts.publisher.Run(ctx) })
		group.Go(func() error { return parts.bindings.run(ctx) })
		group.Go(func() error { return parts.lead(ctx, force) })
		return nil
	})
	return group.Wait()
}

// parts of a controller.
type parts struct {
	settings settings
	logger   *slog.Logger
	registry *prometheus.Registry
	client   kubernetes.Interface

	changes       *watch.Trigger
	sources       *watch.Sources
	pods          *ca.Pods
	authenticator *ca.Authenticator
	root          *ca.RootStore
	authority     *ca.Authority
	keeper        *ca.Keeper
	revoker       *ca.Revoker
	push          *push.Server
	reports       *report.Registry
	status        *status.Reconciler
	policies      *policy.Keeper
	routes        *routes.Keeper
	gateways      *gateway.Reconciler
	bindings      *bindings
	through       *through
	publisher     *publisher
	leadership    leadership
}

// assemble makes the parts and connects them; nothing runs yet.
func assemble(s settings, config *rest.Config, registry *prometheus.Registry, logger *slog.Logger) (*parts, error) {
	client, err := kubernetes.NewForConfig(protobuf(config))
	if err != nil {
		return nil, fmt.Errorf("make Kubernetes client: %w", err)
	}
	workloads, err := status.NewClient(config)
	if err != nil {
		return nil, err
	}
	p := &parts{settings: s, logger: logger, registry: registry, client: client, changes: watch.NewTrigger()}
	policies, err := policy.NewClient(config)
	if err != nil {
		return nil, err
	}
	gateways, err := gatewayapi.NewClient(config)
	if err != nil {
		return nil, err
	}
	if p.sources, err = watch.New(client, policies.Sources(), gateways.Sources(), p.changes.Changed); err != nil {
		return nil, err
	}
	if p.pods, err = ca.NewPods(p.sources.Pods()); err != nil {
		return nil, err
	}
	p.authenticator = ca.NewAuthenticator(ca.AuthenticatorConfig{
		Reviews: client.AuthenticationV1().TokenReviews(), Logger: logger,
	})
	p.root = ca.NewRootStore(ca.RootStoreConfig{
		Client: client, Namespace: s.namespace, TrustDomain: s.trustDomain, Logger: logger, Registerer: registry,
	})
	p.push = push.New(push.Config{
		Authenticator: pushAuthenticator{p.authenticator},
		Namespace:     s.namespace, ServiceAccount: ca.TunnelServiceAccount,
		Waypoint: waypoints{pods: p.pods, objects: p.sources}.of,
		Answered: func() { p.policies.Changed(); p.keeper.Changed(); p.revoker.Changed(); p.bindings.answered() },
		Logger:   logger, Registerer: registry,
	})
	p.authority = ca.NewAuthority(ca.AuthorityConfig{TrustDomain: s.trustDomain, SystemNamespace: s.namespace, Logger: logger})
	p.bindings = newBindings(
		&bindingsObject{client: client.CoreV1().ConfigMaps(s.namespace), signer: p.authority, leads: p.holdsLease, logger: logger}, logger,
		func(publication uint64) bool {
			return heardByAll(p.pods.NodesWith(s.namespace, ca.TunnelServiceAccount), p.push.Connected(), p.push.AckedBy(publication))
		},
		func(waypoint types.NamespacedName, target string) bool {
			return p.push.WaypointsHold(translate.WaypointAlias(waypoint), resource.Binding, target)
		},
		p.changes.Changed, func() { p.gateways.Settled(); p.through.Settled() })
	p.policies = policy.New(policy.Config{
		Client: policies, Objects: p.sources, Proxies: proxies{p.push}, Logger: logger, Registerer: registry,
	})
	p.routes = routes.New(routes.Config{
		Controller: gatewayapi.Controller, Objects: p.sources, Writer: gateways, Logger: logger, Registerer: registry,
	})
	p.gateways = gateway.New(gateway.Config{
		Settings: s.waypoints, Client: client, Gateways: gateways, Objects: p.sources, InForce: p.bindings.isInForce, Ready: p.bindings.readiness,
		Roots: func() []string { return p.authority.Bundle().Roots }, Logger: logger, Registerer: registry,
	})
	p.reports = report.NewRegistry(report.RegistryConfig{
		Acks:    acks{p.push},
		Tunnels: report.NewTunnels(p.pods, p.sources.Nodes().Lister(), s.namespace),
		Leases:  client.CoordinationV1().Leases(s.namespace),
		Logger:  logger, Registerer: registry,
	})
	nodes := newTrustNodes(p.push, p.reports, p.pods, s.namespace, s.trustDomain)
	p.keeper = ca.NewKeeper(ca.KeeperConfig{
		Client: client, Namespace: s.namespace, TrustDomain: s.trustDomain, Root: p.root, Authority: p.authority,
		Nodes:     nodes,
		Published: p.changes.Changed, Logger: logger, Registerer: registry,
	})
	p.revoker = ca.NewRevoker(ca.RevokerConfig{
		Client: client, Namespace: s.namespace, TrustDomain: s.trustDomain, Authority: p.authority, Behind: nodes.Behind,
		Published: p.changes.Changed, Logger: logger, Registerer: registry,
	})
	p.reports.OnCaptured(func(types.NamespacedName) { p.changes.Changed() })
	p.status, err = status.New(status.Config{
		Client: workloads, Pods: p.sources.Pods(), Namespaces: p.sources.Namespaces(), NodePods: p.pods,
		Registry: p.reports, TrustDomain: s.trustDomain, Logger: logger, Registerer: registry,
	})
	if err != nil {
		return nil, err
	}
	p.through = &through{inForce: p.bindings.isInForce, ready: p.bindings.readiness, tell: p.status.Waypoints}
	p.publisher = newPublisher(p.sources, p.reports, p.push, p.changes, translate.Config{
		TrustDomain: s.trustDomain, ClusterID: s.clusterID, ClusterDomain: s.clusterDomain, PodRanges: s.podRanges, ServiceRanges: s.serviceRanges,
		SystemNamespace: s.namespace,
	}, logger, registry)
	p.publisher.outcomes, p.publisher.trust = p.outcomes, p.authority.Bundle
	p.publisher.revoked = p.revoker.Message
	p.publisher.bindings, p.publisher.looks = p.bindings, p.bindings.looks
	return p, nil
}

// outcomes tells those who tell people.
func (p *parts) outcomes(r translate.Result) {
	p.policies.Published(r.Policies)
	p.routes.Published(r.Routes)
	p.gateways.Published(r.Bound)
	p.through.Published(r)
}

// openAuthority waits until the authority has something to sign with.
func (p *parts) openAuthority(ctx context.Context) error {
	return p.keeper.Open(ctx)
}

// restConfig is the way to the API server.
func restConfig(kubeconfig string) (*rest.Config, error) {
	config, err := rest.InClusterConfig()
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	config.UserAgent = "ambit-controller"
	config.QPS, config.Burst = requestsPerSecond, requestBurst
	return config, nil
}

// protobuf has Kubernetes' own types sent in their compact form; custom
// resources have none.
func protobuf(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	return config
}

// stopped makes no error of the end of ctx.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// acks tells report, which thinks in nodes, what push knows of proxies.
type acks struct{ server *push.Server }

// Behind returns the nodes with a proxy that has not acknowledged a publication.
func (a acks) Behind(publication uint64) []string { return nodesOf(a.server.AckedBy(publication)) }

// Connected returns the nodes with a connected proxy.
func (a acks) Connected() []string { return nodesOf(a.server.Connected()) }

func nodesOf(proxies []push.ProxyKey) []string {
	nodes := make([]string, len(proxies))
	for i, p := range proxies {
		nodes[i] = p.Node
	}
	return nodes
}

// proxies tells policy, which thinks in nodes, what push knows of proxies.
type proxies struct{ server *push.Server }

// Each visits every connected proxy.
func (p proxies) Each(visit func(node string, has func(typeURL, name string) (bool, string))) {
	p.server.EachProxy(func(h push.Holdings) { visit(h.Proxy.Node, h.Has) })
}

// Waypoint tells whether a waypoint's pods work with a resource.
func (p proxies) Waypoint(waypoint, typeURL, name string) bool {
	return p.server.WaypointsHold("waypoint/"+waypoint, typeURL, name)
}

// Trouble is what keeps a waypoint's pods from carrying out a resource.
func (p proxies) Trouble(waypoint, typeURL, name string) string {
	return p.server.WaypointsTrouble("waypoint/"+waypoint, typeURL, name)
}

// pushAuthenticator has the authority's word on who calls.
type pushAuthenticator struct{ *ca.Authenticator }

// Authenticate returns who opened a stream.
func (a pushAuthenticator) Authenticate(ctx context.Context) (push.Peer, error) {
	peer, err := a.Authenticator.Authenticate(ctx)
	return push.Peer(peer), err
}
