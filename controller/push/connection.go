package push

import (
	"cmp"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/controller/resource"
)

const (
	// maxTypes that one proxy may subscribe to; we publish ten.
	maxTypes = 16
	// streamsPerProxy: one, and some whose end has not been noticed yet.
	streamsPerProxy = 8
	// defaultStreamAge makes a proxy show its token again: it was proven when the
	// stream began.
	defaultStreamAge = 30 * time.Minute
)

type stream = discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer

// connection is one proxy's stream. Its requests and its responses are handled
// by one goroutine, so that order between them is what the proxy sees.
type connection struct {
	// fixed after newConnection
	server *Server
	stream stream
	peer   Peer
	// waypoint is the key of what is for this proxy alone; empty if it is a node's.
	waypoint string
	created  time.Time
	wake     chan struct{} // capacity 1: a publication is waiting

	mu            sync.Mutex
	nodeID        string                   // guarded by mu
	subscriptions map[string]*subscription // by type URL; guarded by mu
}

// DeltaAggregatedResources serves one proxy until either side ends the stream.
func (s *Server) DeltaAggregatedResources(stream stream) error {
	peer, waypoint, err := s.admit(stream)
	if err != nil {
		return err
	}
	key := ProxyKey{Node: peer.Node, Pod: peer.PodName}
	if !s.streams.Take(key) {
		s.metrics.refused.WithLabelValues("too_many").Inc()
		return status.Errorf(codes.ResourceExhausted, "%s has %d streams open", peer.PodName, streamsPerProxy)
	}
	defer s.streams.Give(key)
	c := &connection{
		server:        s,
		stream:        stream,
		peer:          peer,
		waypoint:      waypoint,
		created:       time.Now(),
		wake:          make(chan struct{}, 1),
		subscriptions: make(map[string]*subscription),
	}
	s.mu.Lock()
	s.connections[c] = struct{}{}
	s.mu.Unlock()
	s.metrics.clients.Inc()
	log := s.logger.With("node", peer.Node, "proxy", peer.PodName)
	log.Info("proxy connected")

	err = c.run()

	s.mu.Lock()
	delete(s.connections, c)
	s.mu.Unlock()
	s.answered()
	s.metrics.clients.Dec()
	log.Info("proxy disconnected", "cause", err, "duration", time.Since(c.created))
	return err
}

// admit authenticates the other end of a stream, and checks that it may subscribe:
// a node's proxy, or a waypoint's.
func (s *Server) admit(stream stream) (peer Peer, waypoint string, err error) {
	peer, err = s.config.Authenticator.Authenticate(stream.Context())
	if err != nil {
		s.metrics.refused.WithLabelValues("unauthenticated").Inc()
		return Peer{}, "", err
	}
	if peer.Namespace == s.config.Namespace && peer.ServiceAccount == s.config.ServiceAccount {
		return peer, "", nil
	}
	if s.config.Waypoint != nil {
		if key, ok := s.config.Waypoint(peer); ok {
			return peer, key, nil
		}
	}
	s.metrics.refused.WithLabelValues("not_allowed").Inc()
	s.logger.Warn("stream refused", "error", "not a proxy's service account",
		"namespace", peer.Namespace, "service_account", peer.ServiceAccount, "pod", peer.PodName)
	return Peer{}, "", status.Errorf(codes.PermissionDenied, "%s/%s may not read the mesh's configuration",
		peer.Namespace, peer.ServiceAccount)
}

// allowed refuses what is not for the proxy: of what is for single waypoints, anything
// but its own.
func (c *connection) allowed(request *discovery.DeltaDiscoveryRequest, first bool) error {
	if request.TypeUrl != resource.Binding && request.TypeUrl != resource.RequestPolicy && request.TypeUrl != resource.RequestAuthentication {
		return nil
	}
	foreign := slices.ContainsFunc(request.ResourceNamesSubscribe, func(name string) bool { return name != c.waypoint })
	if c.waypoint != "" && !foreign && (!first || len(request.ResourceNamesSubscribe) > 0) {
		return nil
	}
	c.server.metrics.refused.WithLabelValues("not_allowed").Inc()
	return status.Errorf(codes.PermissionDenied, "%s may subscribe to %s by its own waypoint's key %q alone",
		c.peer.PodName, shortType(request.TypeUrl), c.waypoint)
}

// run until the stream ends. The goroutine that receives ends right after: its
// Recv fails as soon as the stream's method returns.
func (c *connection) run() error {
	requests := make(chan *discovery.DeltaDiscoveryRequest)
	received := make(chan error, 1)
	go func() { received <- c.receive(requests) }()
	aged := time.NewTimer(c.server.streamAge())
	defer aged.Stop()

	for {
		if err := c.respond(); err != nil {
			return err
		}
		select {
		case request := <-requests:
			if err := c.request(request); err != nil {
				return err
			}
		case <-c.wake:
		case err := <-received:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-aged.C:
			return status.Error(codes.Unavailable, "the stream is old: connect again")
		case <-c.server.closed:
			return status.Error(codes.Unavailable, "the controller is stopping")
		}
	}
}

func (c *connection) receive(requests chan<- *discovery.DeltaDiscoveryRequest) error {
	for {
		request, err := c.stream.Recv()
		if err != nil {
			return err
		}
		select {
		case requests <- request:
		case <-c.stream.Context().Done():
			return c.stream.Context().Err()
		}
	}
}

// wakeUp tells the connection that there is a new publication.
func (c *connection) wakeUp() {
	select {
	case c.wake <- struct{}{}:
	default: // it has yet to look at an earlier one
	}
}

// respond sends what is due, of every type. It may block as long as the proxy
// does not read; publications meanwhile coalesce.
func (c *connection) respond() error {
	w := c.server.world.Load()
	if w == nil {
		return nil
	}
	for _, r := range c.due(w) {
		c.server.metrics.sending(r)
		if err := c.stream.Send(r.message); err != nil {
			return err
		}
	}
	return nil
}

// due returns the responses to be sent, in order. Nothing ever names a policy
// that the proxy has not been sent: policies come before the addresses and bindings
// of their publication, which wait if an older response about policies is under
// way; and what policies there are no longer goes after them.
func (c *connection) due(w *world) (responses []*response) {
	c.mu.Lock()
	defer c.mu.Unlock()
	take := func(s *subscription, keep bool) {
		if r := s.next(w, keep); r != nil {
			responses = append(responses, r)
		}
	}
	var others, naming []*subscription
	behind := false
	for _, typeURL := range slices.Sorted(maps.Keys(c.subscriptions)) {
		s := c.subscriptions[typeURL]
		if !namesPolicies(typeURL) {
			others = append(others, s)
			continue
		}
		naming = append(naming, s)
		behind = behind || s.reached < w.publication
	}
	ready := true
	for _, s := range others {
		take(s, behind && isPolicy(s.typeURL))
		ready = ready && (!isPolicy(s.typeURL) || s.reached == w.publication)
	}
	if len(naming) == 0 || !ready {
		return responses
	}
	reached := true
	for _, s := range naming {
		take(s, false)
		reached = reached && s.reached == w.publication
	}
	if behind && reached {
		for _, s := range others {
			if isPolicy(s.typeURL) {
				take(s, false)
			}
		}
	}
	return responses
}

// isPolicy tells whether others name resources of a type.
func isPolicy(typeURL string) bool {
	return typeURL == resource.Authorization || typeURL == resource.EgressPolicy || typeURL == resource.RequestPolicy ||
		typeURL == resource.RequestAuthentication
}

// namesPolicies tells whether resources of a type do so.
func namesPolicies(typeURL string) bool {
	return typeURL == resource.Address || typeURL == resource.Binding
}

// request applies what the proxy sent.
func (c *connection) request(request *discovery.DeltaDiscoveryRequest) error {
	if err := c.identify(request); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.subscriptions[request.TypeUrl]
	if err := c.allowed(request, !ok); err != nil {
		return err
	}
	if !ok {
		if len(c.subscriptions) == maxTypes {
			return status.Errorf(codes.ResourceExhausted, "more than %d types subscribed to", maxTypes)
		}
		s = newSubscription(request.TypeUrl, c.peer.Node)
		c.subscriptions[request.TypeUrl] = s
		return exhausted(s.begin(request))
	}
	verdict, answered, err := s.apply(request)
	if request.ResponseNonce == "" && request.ErrorDetail != nil {
		c.server.answered()
	}
	if verdict != silent {
		c.server.metrics.answered(answered, verdict)
		c.server.answered()
	}
	if verdict == refused {
		c.server.logger.Error("proxy rejected configuration",
			"node", c.peer.Node, "proxy", c.peer.PodName, "type", shortType(request.TypeUrl),
			"publication", answered.publication, "resources", len(answered.message.Resources),
			"removed", len(answered.message.RemovedResources), "error", request.ErrorDetail.Message)
	}
	return exhausted(err)
}

// identify checks that the node which the proxy claims to be is the one proven.
func (c *connection) identify(request *discovery.DeltaDiscoveryRequest) error {
	if request.Node == nil {
		return nil
	}
	claimed := request.Node.GetMetadata().GetFields()
	for _, claim := range []struct{ key, proven string }{
		{"NODE_NAME", c.peer.Node}, {"NAME", c.peer.PodName}, {"NAMESPACE", c.peer.Namespace},
	} {
		if v := claimed[claim.key].GetStringValue(); v != "" && v != claim.proven {
			c.server.metrics.refused.WithLabelValues("false_claim").Inc()
			return status.Errorf(codes.PermissionDenied, "the node metadata claim %s %q, the token says %q",
				claim.key, v, claim.proven)
		}
	}
	c.mu.Lock()
	c.nodeID = request.Node.Id
	c.mu.Unlock()
	return nil
}

func (c *connection) hasAcked(typeURL string, publication uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.subscriptions[typeURL]
	return ok && s.hasAcked(publication)
}

func (c *connection) key() ProxyKey { return ProxyKey{Node: c.peer.Node, Pod: c.peer.PodName} }

func (c *connection) compare(other *connection) int {
	return cmp.Or(
		strings.Compare(c.peer.Node, other.peer.Node),
		strings.Compare(c.peer.PodName, other.peer.PodName),
		c.created.Compare(other.created),
	)
}

func exhausted(err error) error {
	if err == nil {
		return nil
	}
	return status.Error(codes.ResourceExhausted, err.Error())
}

// shortType is the last part of a type URL, as logs and metrics show it.
func shortType(typeURL string) string {
	return typeURL[strings.LastIndexByte(typeURL, '/')+1:]
}
