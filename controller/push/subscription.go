package push

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"

	"github.com/ambit-mesh/ambit/controller/resource"

	meshapi "github.com/ambit-mesh/ambit/api/mesh"
)

const (
	// wildcard is the key that subscribes to everything of a type.
	wildcard = "*"
	// maxKeys that one proxy may ask for by name, of one type. A node rarely
	// talks to more than some thousand others.
	maxKeys = 100_000
)

// subscription is one type on one connection. It is a state machine without I/O:
// requests go in through apply, responses come out of next.
type subscription struct {
	typeURL string
	node    string

	full bool                // subscribed to everything
	keys map[string]struct{} // asked for by name or alias, if not full

	// held is what the proxy has, as far as we sent it or it said so. In full
	// mode it is a published set once the first response is out.
	held *set
	// answer are keys that the proxy asked for just now: they are answered even
	// if it holds them, or if there is nothing to be had.
	answer []string
	// first is true until the first response, which is sent even if empty: it
	// says that there is nothing more to wait for.
	first bool

	nonces   uint64
	inFlight *response
	// reached is the publication that the proxy has been sent, acknowledged or not.
	reached uint64

	// acked is the newest publication that the proxy is known to work with.
	acked uint64
	// rejected resources, until another version of them is accepted.
	rejected map[string]span
	detail   string // of the last rejection
	// troubles that the proxy has with resources that it works with, by their names.
	troubles map[string]string
}

// span is the publications whose change of a resource may not have arrived:
// after, up to and including. The detail is the proxy's words.
type span struct {
	after, upTo uint64
	detail      string
}

// response is a message to a proxy, and what it means.
type response struct {
	message     *discovery.DeltaDiscoveryResponse
	publication uint64
	sent        time.Time
	// resumed: it is the first on its stream, and the proxy said what it has.
	resumed bool
	// unchanged is how much of that it has rightly.
	unchanged int
}

func newSubscription(typeURL, node string) *subscription {
	return &subscription{
		typeURL:  typeURL,
		node:     node,
		keys:     make(map[string]struct{}),
		held:     &set{},
		first:    true,
		rejected: make(map[string]span),
	}
}

// verdict is what a request says of the response in flight.
type verdict int

const (
	silent verdict = iota // no response in flight, or an older one is meant
	accepted
	refused
)

// begin applies the first request of its type on a stream.
func (s *subscription) begin(request *discovery.DeltaDiscoveryRequest) error {
	s.full = len(request.ResourceNamesSubscribe) == 0
	if n := len(request.InitialResourceVersions); n > 0 {
		held := make(map[string]*resource.Resource, n)
		for name, version := range request.InitialResourceVersions {
			held[name] = &resource.Resource{Name: name, Version: version}
		}
		s.held = &set{byName: held}
	}
	return s.change(request)
}

// apply a later request: an answer to a response, a change of mind, or both; or a word
// about troubles, which answers nothing.
func (s *subscription) apply(request *discovery.DeltaDiscoveryRequest) (verdict, *response, error) {
	v, answered := silent, s.inFlight
	if request.ResponseNonce == "" && request.ErrorDetail != nil {
		s.hear(request.ErrorDetail)
		return v, nil, s.change(request)
	}
	if answered != nil && request.ResponseNonce == answered.message.Nonce {
		s.inFlight = nil
		v = accepted
		if request.ErrorDetail != nil {
			v = refused
			s.detail = request.ErrorDetail.Message
		}
		s.settle(answered, v)
	}
	return v, answered, s.change(request)
}

const (
	// maxTroubles that a proxy may have, and how long its words about one may be.
	maxTroubles = 1024
	maxWords    = 1024
)

// hear takes what a proxy says of its troubles: all there are now.
func (s *subscription) hear(said *status.Status) {
	for _, detail := range said.GetDetails() {
		var now meshapi.Troubles
		if detail.UnmarshalTo(&now) != nil || len(now.GetResources()) > maxTroubles {
			continue
		}
		s.troubles = now.GetResources()
		for name, words := range s.troubles {
			s.troubles[name] = strings.ToValidUTF8(words[:min(len(words), maxWords)], "")
		}
	}
}

// settle records what a proxy said to a response. A proxy that refuses may have
// taken over some of it: which, it does not say.
func (s *subscription) settle(answered *response, v verdict) {
	names := slices.Clone(answered.message.RemovedResources)
	for _, r := range answered.message.Resources {
		names = append(names, r.Name)
	}
	for _, name := range names {
		if v == accepted {
			delete(s.rejected, name)
			continue
		}
		unknown := span{after: s.acked, upTo: answered.publication, detail: s.detail}
		if earlier, ok := s.rejected[name]; ok {
			unknown.after = earlier.after
		}
		s.rejected[name] = unknown
	}
	s.acked = answered.publication
}

// change what is subscribed to.
func (s *subscription) change(request *discovery.DeltaDiscoveryRequest) error {
	for _, key := range request.ResourceNamesSubscribe {
		if key == wildcard {
			s.full = true
			continue
		}
		// In full mode a key is a question only: the proxy gets the resource anyway.
		s.keys[key] = struct{}{}
		s.answer = append(s.answer, key)
	}
	for _, key := range request.ResourceNamesUnsubscribe {
		if key == wildcard {
			s.full = false
		}
		delete(s.keys, key)
	}
	if s.full {
		clear(s.keys)
	}
	if len(s.keys) > maxKeys || len(s.answer) > maxKeys {
		return fmt.Errorf("more than %d keys of %s asked for", maxKeys, s.typeURL)
	}
	return nil
}

// next returns the response that the proxy has to get now, nil for none. With
// keep, nothing is taken from it yet.
func (s *subscription) next(w *world, keep bool) *response {
	if s.inFlight != nil {
		return nil
	}
	s.reached = w.publication
	published := w.set(s.typeURL)
	wanted, d := s.lacking(w, published)
	if keep && len(d.removed) > 0 {
		wanted, d = keepRemoved(s.held, wanted, d)
	}
	changed, removed := s.withAnswers(published, wanted, d)
	if !s.first && len(changed) == 0 && len(removed) == 0 {
		s.held = wanted
		s.acked = w.publication
		return nil
	}

	s.nonces++
	message := &discovery.DeltaDiscoveryResponse{
		SystemVersionInfo: fmt.Sprint(w.publication),
		TypeUrl:           s.typeURL,
		Nonce:             fmt.Sprint(s.nonces),
		RemovedResources:  removed,
	}
	for _, r := range changed {
		message.Resources = append(message.Resources, &discovery.Resource{
			Name:     r.Name,
			Version:  r.Version,
			Aliases:  r.Aliases,
			Resource: r.Body,
		})
	}
	r := &response{message: message, publication: w.publication, sent: time.Now()}
	if s.first && len(s.held.byName) > 0 {
		r.resumed = true
		for name, had := range s.held.byName {
			if now, ok := wanted.byName[name]; ok && now.Version == had.Version {
				r.unchanged++
			}
		}
	}
	s.held = wanted
	s.first = false
	s.answer = nil
	s.inFlight = r
	return s.inFlight
}

// lacking returns what the proxy is to have, and how that differs from what it has.
func (s *subscription) lacking(w *world, published *set) (wanted *set, d *difference) {
	if !s.full {
		wanted = published.selectKeys(s.keys, s.node)
		return wanted, differ(s.held, wanted)
	}
	if s.first { // what it resumes with is known to this connection only
		return published, differ(s.held, published)
	}
	return published, w.differ(s.held, published)
}

// keepRemoved leaves with the proxy what is to be removed.
func keepRemoved(held, wanted *set, d *difference) (*set, *difference) {
	kept := maps.Clone(wanted.byName)
	if kept == nil {
		kept = make(map[string]*resource.Resource)
	}
	for _, name := range d.removed {
		kept[name] = held.byName[name]
	}
	return &set{byName: kept}, &difference{changed: d.changed}
}

// has tells whether the proxy is known to work with a resource as it is
// published, and if it refused it, how it put that.
func (s *subscription) has(published *resource.Resource) (has bool, refusal string) {
	if unknown, refused := s.rejected[published.Name]; refused {
		return false, unknown.detail
	}
	held, ok := s.held.byName[published.Name]
	if !ok || held.Version != published.Version {
		return false, ""
	}
	return s.inFlight == nil || !slices.ContainsFunc(s.inFlight.message.Resources, func(r *discovery.Resource) bool {
		return r.Name == published.Name
	}), ""
}

// withAnswers adds to a difference what the proxy asked for by key: resources
// that it holds already, and the keys for which there is nothing.
func (s *subscription) withAnswers(published, wanted *set, d *difference) ([]*resource.Resource, []string) {
	if len(s.answer) == 0 {
		return d.changed, d.removed
	}
	changed := make(map[string]*resource.Resource, len(d.changed))
	for _, r := range d.changed {
		changed[r.Name] = r
	}
	removed := slices.Clone(d.removed)
	for _, key := range s.answer {
		names := published.lookup(key)
		if len(names) == 0 {
			removed = append(removed, key)
			continue
		}
		if s.first && s.held.byName != nil {
			continue // it resumes, and said what it holds
		}
		for _, name := range names {
			if r, ok := wanted.byName[name]; ok {
				changed[name] = r
			}
		}
	}
	slices.Sort(removed)
	return sortedByName(changed), slices.Compact(removed)
}

// hasAcked tells whether the proxy is known to work with what a publication
// changed, in that version or a newer one.
func (s *subscription) hasAcked(publication uint64) bool {
	if s.acked < publication {
		return false
	}
	for _, unknown := range s.rejected {
		if unknown.after < publication && publication <= unknown.upTo {
			return false
		}
	}
	return true
}

func byName(a, b *resource.Resource) int { return strings.Compare(a.Name, b.Name) }
