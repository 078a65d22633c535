package feed

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// wildcard stands for every resource of a type.
const wildcard = "*"

// stream is one ADS stream. Everything in it is owned by follow.
type stream struct {
	*Client
	ads discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	// awaiting are the types without a first response.
	awaiting  map[string]bool
	addresses *subscriptions
}

// follow connects and follows the controller until the stream or ctx ends.
func (c *Client) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	conn, err := c.connect()
	if err != nil {
		cancel()
		return err
	}
	var receiving sync.WaitGroup
	defer func() {
		cancel()
		conn.Close()
		receiving.Wait()
		c.connected.Store(false)
	}()
	ads, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	responses := make(chan *discovery.DeltaDiscoveryResponse)
	ended := make(chan error, 1)
	receiving.Go(func() { ended <- receive(ctx, ads, responses) })

	s := &stream{Client: c, ads: ads, awaiting: map[string]bool{}, addresses: newSubscriptions(c.heldAddresses(), c.questions.open())}
	if err := s.subscribeAll(); err != nil {
		return s.explain(err, ended)
	}
	if err := s.complain(c.troubles.all()); err != nil {
		return s.explain(err, ended)
	}
	for {
		select {
		case err := <-ended:
			return err
		case response := <-responses:
			err = s.take(response)
		case <-c.questions.wake:
			err = s.ask()
		case <-c.troubles.wake:
			err = s.complain(c.troubles.changed())
		case <-c.restart:
			return errBase
		}
		if err != nil {
			return s.explain(err, ended)
		}
	}
}

// explain replaces a send's error, which says only that the stream is over, by
// the reason, which comes from the receiving side.
func (s *stream) explain(err error, ended <-chan error) error {
	select {
	case reason := <-ended:
		return reason
	case <-time.After(time.Second):
		return err
	}
}

func receive(ctx context.Context, ads discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, to chan<- *discovery.DeltaDiscoveryResponse) error {
	for {
		response, err := ads.Recv()
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		select {
		case to <- response:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// subscribeAll asks for every type, telling the controller what is known already.
func (s *stream) subscribeAll() error {
	node, err := s.config.Node.proto()
	if err != nil {
		return err
	}
	for _, typeURL := range s.awaited() {
		s.awaiting[typeURL] = true
	}
	for _, typeURL := range s.wanted() {
		request := &discovery.DeltaDiscoveryRequest{
			Node:                    node,
			TypeUrl:                 typeURL,
			InitialResourceVersions: s.resources.known(typeURL),
		}
		node = nil // It is sent once a stream.
		switch {
		case typeURL == workload.AddressType:
			s.subscribeAddresses(request)
		case workload.IsWaypointType(typeURL):
			request.ResourceNamesSubscribe = []string{s.config.Waypoint}
		}
		if err := s.ads.Send(request); err != nil {
			return fmt.Errorf("subscribe to %s: %w", typeURL, err)
		}
	}
	return nil
}

// subscribeAddresses completes the first request for addresses. An empty
// subscription means all. With OnDemand it is none but what is named: the
// protocol has no other way to say so than to take the wildcard back at once.
func (s *stream) subscribeAddresses(request *discovery.DeltaDiscoveryRequest) {
	if names := s.addresses.list(); len(names) > 0 || s.config.OnDemand {
		request.ResourceNamesSubscribe = append([]string{wildcard}, names...)
	}
	if s.config.OnDemand {
		request.ResourceNamesUnsubscribe = []string{wildcard}
	}
}

// heldAddresses lists what has to be subscribed to by name to be kept.
func (c *Client) heldAddresses() []string {
	if !c.config.OnDemand {
		return nil
	}
	return c.resources.names(workload.AddressType)
}

// holds tells whether a name stands for something that has to be subscribed to
// by name to be kept.
func (c *Client) holds(name string) bool {
	if !c.config.OnDemand {
		return false
	}
	if addr, ok := workload.ParseAddressKey(name); ok {
		found, err := known(c.config.Store.Snapshot(), addr)
		return found || err != nil
	}
	return c.resources.has(workload.AddressType, name)
}

// ask brings the subscriptions by name up to date.
func (s *stream) ask() error {
	subscribe, unsubscribe := s.addresses.update(s.questions.open(), s.holds)
	if len(subscribe)+len(unsubscribe) == 0 {
		return nil
	}
	err := s.ads.Send(&discovery.DeltaDiscoveryRequest{
		TypeUrl: workload.AddressType, ResourceNamesSubscribe: subscribe, ResourceNamesUnsubscribe: unsubscribe,
	})
	if err != nil {
		return fmt.Errorf("ask for addresses: %w", err)
	}
	return nil
}

// take applies a response, then acknowledges it.
func (s *stream) take(response *discovery.DeltaDiscoveryResponse) error {
	rejected := s.apply(toDelta(response))
	s.metrics.pushed(time.Now())

	request := &discovery.DeltaDiscoveryRequest{TypeUrl: response.GetTypeUrl(), ResponseNonce: response.GetNonce()}
	if len(rejected) > 0 {
		request.ErrorDetail = &status.Status{Code: int32(codes.InvalidArgument), Message: describe(rejected)}
	}
	if err := s.ads.Send(request); err != nil {
		return fmt.Errorf("acknowledge %s: %w", response.GetTypeUrl(), err)
	}

	if delete(s.awaiting, response.GetTypeUrl()); len(s.awaiting) == 0 {
		s.settle()
	}
	if len(s.awaiting) == 0 && !s.connected.Swap(true) {
		s.logger.Info("configuration stream synced", "address", s.config.Address, "version", s.config.Store.Snapshot().Version())
	}
	if response.GetTypeUrl() != workload.AddressType {
		return nil
	}
	s.answer(response)
	return s.ask()
}

// toDelta copies what outlives the response: names and versions, in one go, so
// that they lie together. What was decoded with them goes, and would leave holes.
func toDelta(response *discovery.DeltaDiscoveryResponse) workload.Delta {
	delta := workload.Delta{
		Type: response.GetTypeUrl(), Removed: response.GetRemovedResources(),
		Upserts: make([]workload.Resource, len(response.GetResources())),
	}
	for i, r := range response.GetResources() {
		delta.Upserts[i] = workload.Resource{
			Name: strings.Clone(r.GetName()), Version: strings.Clone(r.GetVersion()), Aliases: r.GetAliases(), Body: r.GetResource(),
		}
	}
	return delta
}

// answer tells the askers what a response about addresses means for them.
func (s *stream) answer(response *discovery.DeltaDiscoveryResponse) {
	mentioned := map[string]bool{}
	for _, name := range response.GetRemovedResources() {
		mentioned[name] = true
	}
	for _, r := range response.GetResources() {
		for _, alias := range r.GetAliases() {
			mentioned[alias] = true
		}
	}
	s.questions.answer(s.config.Store.Snapshot(), mentioned)
}

// describedAtMost bounds a NACK: the controller logs it, and one resource
// is enough to find the fault.
const describedAtMost = 10

func describe(rejected []workload.Rejection) string {
	var lines []string
	for i, r := range rejected {
		if i == describedAtMost {
			lines = append(lines, fmt.Sprintf("and %d more", len(rejected)-i))
			break
		}
		lines = append(lines, r.Error())
	}
	return strings.Join(lines, "; ")
}

// proto is n as the protocol wants it.
func (n Node) proto() (*core.Node, error) {
	ips := make([]string, len(n.IPs))
	for i, ip := range n.IPs {
		ips[i] = ip.String()
	}
	metadata, err := structpb.NewStruct(map[string]any{
		"NAME":         n.PodName,
		"NAMESPACE":    n.Namespace,
		"NODE_NAME":    n.NodeName,
		"CLUSTER_ID":   n.ClusterID,
		"INSTANCE_IPS": strings.Join(ips, ","),
	})
	if err != nil {
		return nil, errors.Join(errors.New("describe node"), err)
	}
	return &core.Node{Id: n.ID(), Metadata: metadata}, nil
}
