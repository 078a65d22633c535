// Package push serves published resources to proxies: incremental aggregated
// discovery (delta ADS), the configuration protocol of the field's data planes.
//
//	server.go        publications, and which proxies acknowledged them
//	connection.go    one proxy: its stream, and a goroutine that sends to it
//	subscription.go  one type on one connection: what is wanted, held, in flight
//	set.go           an immutable set of resources, its indexes and differences
//
// A proxy subscribes to a type in full (`*`, or an empty first request) or to
// single keys, by name or by alias. A publication wakes every connection; each
// works out for itself what its proxy lacks. At most one response per type is
// unacknowledged on a connection, so changes that come meanwhile coalesce and a
// slow proxy costs its own progress only.
//
// Invariants: nothing is sent before the first publication; what a proxy said
// it has is not sent again; a workload is never sent before the policies that it
// names, and no policy is taken away while a workload may name it; an acknowledged publication N means that the proxy
// works with N or newer, and a rejection never counts as one; only
// authenticated proxies are answered.
//
// Making resources is translate's job, authenticating a caller the CA's.
package push

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/controller/resource"
	"github.com/ambit-mesh/ambit/internal/quota"
)

// MaxRequestBytes is what a gRPC server has to accept for a proxy to resume with
// the versions of all it holds: about 80 bytes a resource, for 800,000.
const MaxRequestBytes = 64 << 20

// Peer is who is at the other end of a stream, as proven, not as claimed.
type Peer struct {
	Namespace      string
	ServiceAccount string
	PodName        string
	PodUID         string
	Node           string
}

// Authenticator proves who opened a stream. Its errors are gRPC statuses, and
// logged by it.
type Authenticator interface {
	Authenticate(ctx context.Context) (Peer, error)
}

// ProxyKey names a connected proxy.
type ProxyKey struct {
	Node string
	Pod  string
}

// Config of a [Server].
type Config struct {
	// Authenticator of streams; required.
	Authenticator Authenticator
	// Namespace and ServiceAccount of the proxies that may subscribe.
	Namespace      string
	ServiceAccount string
	// Waypoint, if set, tells whether a peer is a pod of a waypoint, and the key of
	// what is for that waypoint alone.
	Waypoint func(Peer) (key string, ok bool)
	// Answered, if set, is called when it may have changed what proxies are known
	// to hold. It must not block.
	Answered func()
	// StreamAge after which a proxy has to connect again; 30 minutes if 0.
	StreamAge time.Duration

	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Server implements the aggregated discovery service. Register it with
// discovery.RegisterAggregatedDiscoveryServiceServer.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer

	// fixed after New
	config  Config
	logger  *slog.Logger
	metrics *metrics
	closed  chan struct{}
	close   func()
	streams *quota.Counter[ProxyKey]

	world atomic.Pointer[world]

	publishing sync.Mutex // one Publish at a time

	mu          sync.Mutex
	connections map[*connection]struct{} // guarded by mu
}

// New makes a server that has published nothing yet.
func New(config Config) *Server {
	s := &Server{
		config:      config,
		logger:      config.Logger,
		metrics:     newMetrics(config.Registerer),
		closed:      make(chan struct{}),
		streams:     quota.NewCounter[ProxyKey](streamsPerProxy),
		connections: make(map[*connection]struct{}),
	}
	s.close = sync.OnceFunc(func() { close(s.closed) })
	return s
}

// Publish makes resources the ones that proxies are to have, and returns the
// number of that publication. Publishing what is published already changes
// nothing, and returns the number it has.
func (s *Server) Publish(resources resource.Resources) uint64 {
	s.publishing.Lock()
	defer s.publishing.Unlock()

	previous := s.world.Load()
	next := newWorld(previous, resources)
	if next == previous {
		return previous.publication
	}
	s.world.Store(next)
	s.metrics.published(next)

	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.connections {
		c.wakeUp()
	}
	return next.publication
}

// Publication is the number of the latest publication, 0 before the first.
func (s *Server) Publication() uint64 {
	if w := s.world.Load(); w != nil {
		return w.publication
	}
	return 0
}

// AckedBy returns the connected proxies of nodes that have not acknowledged a publication
// of addresses yet: for any other, what it works with is that one or newer. A
// proxy that lacked nothing counts as having acknowledged; one that rejected a
// response does not, until what it rejected was replaced by something accepted.
func (s *Server) AckedBy(publication uint64) (behind []ProxyKey) {
	for _, c := range s.nodes() {
		if !c.hasAcked(resource.Address, publication) {
			behind = append(behind, c.key())
		}
	}
	return behind
}

// Holdings is what one connected proxy is known to work with.
type Holdings struct {
	Proxy      ProxyKey
	connection *connection
	world      *world
}

// EachProxy shows what each connected proxy of a node holds, ordered by node and pod.
// The Holdings are good only until visit returns, which must not call the Server.
func (s *Server) EachProxy(visit func(Holdings)) {
	w := s.world.Load()
	if w == nil {
		return
	}
	for _, c := range s.nodes() {
		c.mu.Lock()
		visit(Holdings{Proxy: c.key(), connection: c, world: w})
		c.mu.Unlock()
	}
}

// Has tells whether the proxy acknowledged a resource as it is published now.
// If it refused that, the refusal is the proxy's words.
func (h Holdings) Has(typeURL, name string) (has bool, refusal string) {
	published, ok := h.world.set(typeURL).byName[name]
	subscribed, asked := h.connection.subscriptions[typeURL]
	if !ok || !asked {
		return false, ""
	}
	return subscribed.has(published)
}

// Version of a resource as it is published now; empty where it is not.
func (h Holdings) Version(typeURL, name string) string {
	if published, ok := h.world.set(typeURL).byName[name]; ok {
		return published.Version
	}
	return ""
}

// answered tells whoever wants to know.
func (s *Server) answered() {
	if s.config.Answered != nil {
		s.config.Answered()
	}
}

// WaypointsHold tells whether every connected proxy of a waypoint, at least one,
// acknowledged a resource as it is published now.
func (s *Server) WaypointsHold(waypoint, typeURL, name string) bool {
	w := s.world.Load()
	if w == nil {
		return false
	}
	any := false
	for _, c := range s.snapshot() {
		if c.waypoint != waypoint {
			continue
		}
		c.mu.Lock()
		has, _ := Holdings{Proxy: c.key(), connection: c, world: w}.Has(typeURL, name)
		c.mu.Unlock()
		if !has {
			return false
		}
		any = true
	}
	return any
}

// WaypointsTrouble is what keeps one of the connected proxies of a waypoint from carrying
// out a resource, in its words; empty if nothing does.
func (s *Server) WaypointsTrouble(waypoint, typeURL, name string) string {
	for _, c := range s.snapshot() {
		if c.waypoint != waypoint {
			continue
		}
		c.mu.Lock()
		words := ""
		if subscribed, ok := c.subscriptions[typeURL]; ok {
			words = subscribed.troubles[name]
		}
		c.mu.Unlock()
		if words != "" {
			return words
		}
	}
	return ""
}

// Connected returns the proxies of nodes with an open stream.
func (s *Server) Connected() []ProxyKey {
	var keys []ProxyKey
	for _, c := range s.nodes() {
		keys = append(keys, c.key())
	}
	return keys
}

// Close ends all streams, and refuses new ones. Proxies connect to another replica.
func (s *Server) Close() { s.close() }

// streamAge is a little less than the configured one, never the same twice:
// proxies that connected together do not come back together.
func (s *Server) streamAge() time.Duration {
	age := cmp.Or(s.config.StreamAge, defaultStreamAge)
	return age - rand.N(age/5)
}

// nodes are the connections of nodes' proxies, ordered by node and pod.
func (s *Server) nodes() []*connection {
	return slices.DeleteFunc(s.snapshot(), func(c *connection) bool { return c.waypoint != "" })
}

// snapshot returns the open connections, ordered by node and pod.
func (s *Server) snapshot() []*connection {
	s.mu.Lock()
	connections := slices.Collect(maps.Keys(s.connections))
	s.mu.Unlock()
	slices.SortFunc(connections, func(a, b *connection) int { return a.compare(b) })
	return connections
}
