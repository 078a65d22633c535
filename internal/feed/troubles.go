package feed

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/api/mesh"
)

// troubles are what the controller is to be told of: what keeps this proxy from carrying
// out resources that it has taken over.
type troubles struct {
	// wake has an element when something has changed.
	wake chan struct{}

	mu sync.Mutex
	// Guarded by mu: by type, then by the resource's name.
	now   map[string]map[string]string
	stale map[string]bool // types that the controller has not been told of
}

func newTroubles() *troubles {
	return &troubles{wake: make(chan struct{}, 1), now: map[string]map[string]string{}, stale: map[string]bool{}}
}

// Trouble tells the controller what keeps this proxy from carrying out resources of a
// type, by their names: all there is now. It never blocks.
func (c *Client) Trouble(typeURL string, resources map[string]string) {
	c.troubles.set(typeURL, resources)
}

func (t *troubles) set(typeURL string, resources map[string]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if maps.Equal(t.now[typeURL], resources) {
		return
	}
	t.now[typeURL], t.stale[typeURL] = maps.Clone(resources), true
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// changed are the troubles of the types that the controller has not been told of.
func (t *troubles) changed() map[string]map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed := map[string]map[string]string{}
	for typeURL := range t.stale {
		changed[typeURL] = t.now[typeURL]
	}
	clear(t.stale)
	return changed
}

// all there are, for a controller that has been told of none.
func (t *troubles) all() map[string]map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.stale)
	all := maps.Clone(t.now)
	maps.DeleteFunc(all, func(_ string, resources map[string]string) bool { return len(resources) == 0 })
	return all
}

// complain says of types what troubles there are with their resources. It answers no
// response, and so bears no nonce.
func (s *stream) complain(of map[string]map[string]string) error {
	for _, typeURL := range slices.Sorted(maps.Keys(of)) {
		detail, err := anypb.New(&mesh.Troubles{Resources: of[typeURL]})
		if err != nil {
			return err
		}
		err = s.ads.Send(&discovery.DeltaDiscoveryRequest{
			TypeUrl: typeURL, ErrorDetail: &status.Status{Code: int32(codes.FailedPrecondition), Details: []*anypb.Any{detail}},
		})
		if err != nil {
			return fmt.Errorf("tell of troubles with %s: %w", typeURL, err)
		}
	}
	return nil
}
