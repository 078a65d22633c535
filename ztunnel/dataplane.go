package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/internal/accept"
	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/endpoints"
	"github.com/ambit-mesh/ambit/internal/feed"
	"github.com/ambit-mesh/ambit/internal/pool"
	"github.com/ambit-mesh/ambit/internal/quota"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/ztunnel/dns"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
	"github.com/ambit-mesh/ambit/ztunnel/inbound"
	"github.com/ambit-mesh/ambit/ztunnel/outbound"
	"github.com/ambit-mesh/ambit/ztunnel/podns"
	"github.com/ambit-mesh/ambit/ztunnel/pods"
	"github.com/ambit-mesh/ambit/ztunnel/redirect"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

// releasedBound is how long connections of a pod that was let go may live on
// through the tunnel: long enough for any that somebody waits for.
const releasedBound = 24 * time.Hour

// certificateWait is many times what a controller needs that is there at all.
const certificateWait = 3 * time.Second

// closeTimeout bounds the end of a capture whose sandbox is gone.
const closeTimeout = 2 * time.Second

// dataplane captures pods and carries their connections: it is what stands
// behind the pods of the node.
type dataplane struct {
	// Fixed after run made it.
	node        *node
	trustDomain string
	clusterID   string
	nodeName    string
	certs       *certs.Store
	store       *workload.Store
	feed        *feed.Client
	conns       *conns.Registry
	relay       *relay.Relay
	endpoints   *endpoints.Registry
	pools       *pool.Metrics
	resolver    *dns.Resolver
	dnsMetrics  *dns.Metrics
	egress      *egress.Metrics
	names       *rememberedNames
	policy      inbound.Policy
	grace       time.Duration // of connections older than a pod's capture, once it is strict
	synced      func() bool   // whether the store can be worked with
	netNSDir    string        // where the container runtime keeps pods' namespaces
	// onNode returns the namespaces of this node's pods; false until each of them was captured, or noted as left alone, or could not be.
	onNode func() (namespaces []string, known bool)
	// settled is closed once what was there when the process began is captured, or could not be.
	settled func() <-chan struct{}
	// started and startedEgress have an element when a pod was captured, for
	// followStrictness and for followEgress.
	started, startedEgress chan struct{}
	quotas                 *accept.Quotas
	shares                 *quota.Shares
	logger                 *slog.Logger
	tunnelled              tunnelled

	// Owned by followEgress: when was last counted what policies on trial would drop.
	counted time.Time

	// ceded: another process tells the kernel what holds for the pods.
	ceded atomic.Bool

	// Guarded by mu.
	mu       sync.Mutex
	captures map[string]*capture // by the workload's uid
	another  chan struct{}       // closed, and made anew, when one is added
	unheld   error               // why a pod's connections are not held
}

// Start captures a pod.
func (d *dataplane) Start(ctx context.Context, target pods.Target) (pods.Running, error) {
	opened, err := d.node.get()
	if err != nil {
		return nil, err
	}
	id, err := spiffe.New(d.trustDomain, target.Namespace, target.ServiceAccount)
	if err != nil {
		return nil, &codedError{code: "IdentityInvalid", text: err.Error(), err: err}
	}
	netns, err := podns.Open(target.Sandbox.Path)
	if err != nil {
		return nil, &codedError{code: "NetNSUnreadable", text: err.Error(), err: err}
	}
	if netns.Inode() != target.Sandbox.Inode {
		return nil, errors.Join(&codedError{code: "NetNSReplaced", text: fmt.Sprintf("%s is another namespace by now", target.Sandbox.Path)}, netns.Close())
	}
	// Ahead of need: the certificate comes while the pod is being captured.
	d.certs.Want(id)
	if target.Serving {
		if err := d.awaitCertificate(ctx, id); err != nil {
			d.certs.Forget(id)
			return nil, errors.Join(err, netns.Close())
		}
	}
	captured, err := opened.Enroll(ctx, redirect.Pod{
		UID: target.UID, NetNS: netns, IPs: target.Sandbox.IPs, DNS: target.DNS, Strict: d.startsStrict(target),
		EgressDenied: d.startsDenied(target, d.describe(target, id)),
	})
	if err != nil {
		d.certs.Forget(id)
		return nil, errors.Join(withCode(err, "CaptureFailed"), netns.Close())
	}
	return d.serve(target, id, netns, captured), nil
}

// awaitCertificate waits for what a captured pod's connections need.
func (d *dataplane) awaitCertificate(ctx context.Context, id spiffe.ID) error {
	ctx, cancel := context.WithTimeout(ctx, certificateWait)
	defer cancel()
	if _, err := d.certs.Get(ctx, id); err != nil {
		return &codedError{code: "CertificateMissing", text: "the pod stays outside of the mesh until it has one: " + err.Error(), err: err}
	}
	return nil
}

// serve runs both proxies of a captured pod.
func (d *dataplane) serve(target pods.Target, id spiffe.ID, netns *podns.NetNS, captured *redirect.Capture) *capture {
	own := d.describe(target, id)
	workloadNow := func() *workload.Workload { return d.current(own) }
	logger := d.logger.With("pod", target.Name, "namespace", target.Namespace)
	share := d.shares.Join()
	way := egress.NewPod(workloadNow, d.egress, logger)
	way.Names.Restore(d.names.take(target.UID))
	c := &capture{
		dataplane: d, uid: own.UID, podUID: target.UID, ips: target.Sandbox.IPs, id: id, netns: netns, redirect: captured, share: share, logger: logger,
		ended:  make(chan struct{}),
		egress: way,
		outbound: outbound.New(outbound.Config{
			Listener: captured.Outbound, Dialer: captured,
			Hold: func(take func(outbound.Held)) error {
				return d.held(captured.Hold(func(h *redirect.Held) { take(h) }))
			},
			TLS: func(expected ...spiffe.ID) *tls.Config { return d.certs.ClientConfig(id, expected...) }, Trust: d.certs,
			Source: workloadNow, Snapshot: d.store.Snapshot, Lookup: d.feed.Lookup, Local: d, Egress: way,
			Conns: d.conns, Relay: d.relay, Endpoints: d.endpoints, PoolMetrics: d.pools, Share: share, Logger: logger, DrainTimeout: releasedBound,
		}),
		inbound: inbound.New(inbound.Config{
			HBONE: captured.HBONE, Plaintext: captured.Plaintext, App: captured,
			TLS: d.certs.ServerConfig(id), Target: workloadNow, Snapshot: d.store.Snapshot,
			Policy: d.policy, Trust: d.certs, Conns: d.conns, Relay: d.relay, Quotas: d.quotas, Share: share, Logger: logger, DrainTimeout: releasedBound,
		}),
	}
	if captured.DNS != nil {
		c.dns = d.answer(captured, c, workloadNow)
	}
	var ctx context.Context
	ctx, c.stop = context.WithCancel(context.Background())
	d.mu.Lock()
	d.captures[c.uid] = c
	close(d.another)
	d.another = make(chan struct{})
	d.mu.Unlock()
	d.signalStarted()
	go c.run(ctx)
	return c
}

// held remembers why holding failed, for whoever runs the node: it captures all the same.
func (d *dataplane) held(err error) error {
	if err != nil {
		d.mu.Lock()
		d.unheld = err
		d.mu.Unlock()
	}
	return err
}

// problems of the pods' capture, coded.
func (d *dataplane) problems() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []string
	if d.unheld != nil {
		coded := withCode(d.unheld, string(redirect.HoldMissing))
		all = append(all, coded.code+": "+coded.text)
	}
	// What is not readable holds connections up, or refuses them: whoever runs the node shall know.
	if rejected := d.store.Snapshot().Rejected(); len(rejected) > 0 {
		var first []string
		for _, r := range rejected[:min(len(rejected), listedUnreadable)] {
			first = append(first, r.Error())
		}
		all = append(all, fmt.Sprintf("ConfigurationUnreadable: %d resources cannot be read, and the strictest is taken for them; the first are %s. "+
			"Have controller and ztunnel be of one version.", len(rejected), strings.Join(first, "; ")))
	}
	d.tunnelled.mu.Lock()
	defer d.tunnelled.mu.Unlock()
	if d.tunnelled.problem != "" {
		all = append(all, d.tunnelled.problem)
	}
	return all
}

// listedUnreadable is how many resources that cannot be read a problem names: it is one line, which is cut.
const listedUnreadable = 3

// describe makes the workload that a pod is from what its own node knows.
func (d *dataplane) describe(target pods.Target, id spiffe.ID) *workload.Workload {
	return &workload.Workload{
		UID:       workload.PodUID(d.clusterID, target.Namespace, target.Name),
		Name:      target.Name,
		Namespace: target.Namespace,
		Addresses: target.Sandbox.IPs,
		ClusterID: d.clusterID,
		Node:      d.nodeName,
		Protocol:  workload.HBONE,
		Identity:  id,
		Healthy:   true,
		Kind:      "pod",
		Owner:     target.Name,
	}
}

// current adds to what the node knows of its own pod what the controller knows
// besides, such as its locality. Who the pod is, the node's word decides.
func (d *dataplane) current(own *workload.Workload) *workload.Workload {
	published, ok := d.store.Snapshot().WorkloadByUID(own.UID)
	if !ok || published.Identity != own.Identity || !slices.ContainsFunc(own.Addresses, func(ip netip.Addr) bool { return slices.Contains(published.Addresses, ip) }) {
		return own
	}
	return published
}

// Pinned lists the pods that an earlier process captured.
func (d *dataplane) Pinned() []string {
	opened, err := d.node.get()
	if err != nil {
		return nil
	}
	return opened.Adopted()
}

// Leave notes that the pod of a sandbox is not to be captured.
func (d *dataplane) Leave(sandbox pods.Sandbox) error {
	opened, err := d.node.get()
	if err != nil {
		return err
	}
	netns, err := podns.Open(sandbox.Path)
	if err != nil {
		return err
	}
	defer netns.Close()
	if netns.Inode() != sandbox.Inode {
		return fmt.Errorf("%s is another namespace by now", sandbox.Path)
	}
	err = opened.Leave(netns)
	if errors.Is(err, redirect.ErrFull) {
		if err := d.forgetLeft(opened); err != nil {
			return err
		}
		err = opened.Leave(netns)
	}
	return err
}

// forgetLeft forgets those whose namespaces are gone.
func (d *dataplane) forgetLeft(opened *redirect.Redirect) error {
	there, err := podns.Scan(d.netNSDir)
	if err != nil {
		return err
	}
	lives := make(map[uint64]bool, len(there))
	for _, n := range there {
		lives[n.Cookie] = true
	}
	return opened.ForgetClasses(func(cookie uint64) bool { return lives[cookie] })
}

// Forget removes the pins of a pod that is gone.
func (d *dataplane) Forget(uid string) error {
	opened, err := d.node.get()
	if err != nil {
		return err
	}
	return opened.Forget(uid)
}

// captureOf finds a pod of this node that has an address. While this process captures what was there when it began, as where it
// takes over from another, it waits for the pod.
func (d *dataplane) captureOf(ctx context.Context, target *workload.Workload, ip netip.Addr) (*capture, error) {
	for {
		settled := closed(d.settled())
		d.mu.Lock()
		c, ok := d.captures[target.UID]
		another := d.another
		d.mu.Unlock()
		if ok && slices.Contains(c.ips, ip) {
			return c, nil
		}
		err := fmt.Errorf("pod %s/%s is not captured on this node", target.Namespace, target.Name)
		if settled {
			return nil, err
		}
		select {
		case <-another:
		case <-d.settled():
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		}
	}
}

// Deliver hands a connection to the inbound side of a pod of this node.
func (d *dataplane) Deliver(ctx context.Context, target *workload.Workload, src outbound.LocalSource, dst netip.AddrPort) (outbound.LocalConn, error) {
	c, err := d.captureOf(ctx, target, dst.Addr())
	if err != nil {
		return nil, err
	}
	conn, err := c.inbound.Local(ctx, src.Workload, src.Client, dst)
	if err != nil {
		return nil, err
	}
	return conn, nil
}
