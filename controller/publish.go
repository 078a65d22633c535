package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	meshapi "github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/controller/ca"
	"github.com/ambit-mesh/ambit/controller/push"
	"github.com/ambit-mesh/ambit/controller/report"
	"github.com/ambit-mesh/ambit/controller/status"
	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/controller/watch"
)

// captures knows which pods are captured, and is told what became of that.
type captures interface {
	Captured() report.CapturedView
	Published(report.Publication)
}

// publisher translates all there is whenever something changed, and publishes it.
type publisher struct {
	// fixed before Run
	sources   *watch.Sources
	captures  captures
	server    *push.Server
	changes   *watch.Trigger
	config    translate.Config
	trust     func() ca.Bundle // set before Run
	revoked   func() *meshapi.RevocationList
	published func()                 // told of every publication
	outcomes  func(translate.Result) // told what became of the objects in it
	// bindings tells how far they are; before it is asked, looks is called, and then told
	// of those in the publication.
	bindings translate.Bindings
	looks    func() (published func([]*translate.Bound, uint64))
	logger   *slog.Logger
	seconds  prometheus.Histogram

	// owned by Run
	complaint string           // what was last logged as impossible to translate
	enrolled  status.Enrolment // of the last publication

	mu          sync.Mutex
	begun, made uint64        // publications; guarded by mu
	another     chan struct{} // closed and replaced when made grows; guarded by mu
}

func newPublisher(sources *watch.Sources, captures captures, server *push.Server, changes *watch.Trigger,
	config translate.Config, logger *slog.Logger, registerer prometheus.Registerer) *publisher {
	p := &publisher{
		sources: sources, captures: captures, server: server, changes: changes, config: config,
		trust: func() ca.Bundle { return ca.Bundle{} }, revoked: func() *meshapi.RevocationList { return nil }, published: func() {}, outcomes: func(translate.Result) {}, looks: func() func([]*translate.Bound, uint64) { return func([]*translate.Bound, uint64) {} },
		logger: logger, another: make(chan struct{}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "ambit_translate_seconds", Help: "From a look at Kubernetes to a publication.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8), // 0.5 ms to 8 s
		}),
	}
	registerer.MustRegister(p.seconds)
	return p
}

// Run until ctx ends. Start it when all sources are synced.
func (p *publisher) Run(ctx context.Context) error {
	return p.changes.Run(ctx, p.publish)
}

// freshRetry is how soon a publication that could not be made is tried again.
const freshRetry = time.Second

// fresh waits for a publication that is made of what is known now.
func (p *publisher) fresh(ctx context.Context) error {
	p.mu.Lock()
	stale := p.begun
	p.mu.Unlock()
	for {
		p.changes.Changed()
		p.mu.Lock()
		made, another := p.made, p.another
		p.mu.Unlock()
		if made > stale {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-another:
		case <-time.After(freshRetry):
		}
	}
}

// begin and finish number the publications; Run makes one after the other.
func (p *publisher) begin() (number uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun++
	return p.begun
}

func (p *publisher) finish(number uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.made = number
	close(p.another)
	p.another = make(chan struct{})
}

func (p *publisher) publish() {
	began, number := time.Now(), p.begin()
	// Before the objects: a withdrawal that is in this view is in the publication.
	captured := p.captures.Captured()
	trust, bound := p.trust(), p.looks()
	objects, err := p.sources.Objects()
	if err != nil {
		p.logger.Error("list objects", "error", err)
		return
	}
	p.enrolled = status.Enrolled(objects.Pods, objects.Namespaces, p.config.SystemNamespace, p.enrolled, began)
	leaving, disagreed := agree(objects, captured, p.enrolled, p.config.SystemNamespace)
	result, err := translate.Translate(translate.Input{
		Pods: objects.Pods, Services: objects.Services, Slices: objects.Slices, Nodes: objects.Nodes, Namespaces: objects.Namespaces,
		ServiceCIDRs:        objects.ServiceCIDRs,
		PeerAuthentications: objects.PeerAuthentications, AuthorizationPolicies: objects.AuthorizationPolicies,
		EgressPolicies: objects.EgressPolicies, RequestAuthentications: objects.RequestAuthentications,
		Gateways: objects.Gateways,
		Bindings: p.bindings,
		Routes:   translate.Routes{HTTP: objects.HTTPRoutes, GRPC: objects.GRPCRoutes, TLS: objects.TLSRoutes, TCP: objects.TCPRoutes},
		Captured: captured, Enrolled: p.enrolled, Leaving: leaving,
		Roots: trust.Roots, Retiring: trust.Retiring, Revoked: p.revoked(), Config: p.config,
	})
	p.complain(err)
	publication := p.server.Publish(result.Resources)
	p.captures.Published(report.Publication{
		Generation: captured.Generation(), Number: publication, Disagreed: disagreed,
	})
	bound(result.Bound, publication)
	p.outcomes(result)
	p.seconds.Observe(time.Since(began).Seconds())
	p.logger.Debug("published", "publication", publication, "captured_generation", captured.Generation(),
		"duration", time.Since(began))
	p.published()
	p.finish(number)
}

// agree finds the captured pods that leave: their nodes ask to let them go, and the labels want it. Of how many
// others only the one or the other is so, it counts. Whoever's word were enough alone, what one of both has heard of
// late, or has wrong, would have a pod take plaintext that stays.
func agree(objects watch.Objects, captured report.CapturedView, enrolled status.Enrolment, system string) (leaving report.Leaving, disagreed int) {
	leaving = status.Leaving(objects.Pods, objects.Namespaces, system, captured.Leaving())
	for uid := range status.Leaving(objects.Pods, objects.Namespaces, system, captured) {
		if !leaving.Has(uid) {
			disagreed++
		}
	}
	for uid := range captured.Leaving() {
		if _, stays := enrolled.Since(uid); stays {
			disagreed++
		}
	}
	return leaving, disagreed
}

// complain logs what could not be translated, each time that it changes.
func (p *publisher) complain(err error) {
	complaint := ""
	if err != nil {
		complaint = err.Error()
	}
	if complaint != p.complaint && complaint != "" {
		p.logger.Error("objects left out", "error", err)
	}
	p.complaint = complaint
}
