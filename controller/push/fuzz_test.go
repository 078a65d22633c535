package push

import (
	"strings"
	"testing"
	"unicode/utf8"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	meshapi "github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/controller/resource"
)

// FuzzSubscription: whatever requests a proxy sends, in whatever order, it gets at
// most one unanswered response of a type, never believes to have acknowledged what
// was not sent, and holds no more keys than it may.
func FuzzSubscription(f *testing.F) {
	for _, requests := range [][2]*discovery.DeltaDiscoveryRequest{
		{{}, {ResponseNonce: "1"}},
		{{ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: map[string]string{"a": "1", "x": ""}}, {ResponseNonce: "1", ResourceNamesUnsubscribe: []string{"*"}}},
		{{ResourceNamesSubscribe: []string{"a", "/10.0.0.1", ""}}, {ResponseNonce: "2", ResourceNamesSubscribe: []string{"b"}}},
	} {
		a, errA := proto.Marshal(requests[0])
		b, errB := proto.Marshal(requests[1])
		if errA != nil || errB != nil {
			f.Fatal(errA, errB)
		}
		f.Add(a, b, b)
	}
	published := newWorld(nil, mesh{}.world())
	f.Fuzz(func(t *testing.T, first, second, third []byte) {
		for typeURL := range published.sets {
			s := newSubscription(typeURL, "n1")
			begun := false
			for _, content := range [][]byte{first, second, third} {
				request := new(discovery.DeltaDiscoveryRequest)
				if proto.Unmarshal(content, request) != nil {
					continue
				}
				var err error
				if begun {
					_, _, err = s.apply(request)
				} else {
					err, begun = s.begin(request), true
				}
				if err != nil {
					break
				}
				if r := s.next(published, false); r != nil && s.next(published, false) != nil {
					t.Fatal("a second response before the first was answered")
				}
				if s.acked > published.publication || len(s.keys) > maxKeys {
					t.Fatalf("acknowledged %d of %d, %d keys", s.acked, published.publication, len(s.keys))
				}
			}
		}
	})
}

// FuzzTroubles: whatever a proxy says of its troubles, what is kept of it is bounded, and text.
func FuzzTroubles(f *testing.F) {
	for _, troubles := range []map[string]string{nil, {"shop/tokens": "keys at http://x: refused"}, {"": strings.Repeat("ä", maxWords)}} {
		body, err := proto.Marshal(&meshapi.Troubles{Resources: troubles})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body, body, true)
	}
	f.Fuzz(func(t *testing.T, first, second []byte, typed bool) {
		var before meshapi.Troubles
		details := []*anypb.Any{{TypeUrl: "type.googleapis.com/ambit.mesh.Troubles", Value: first}, {Value: second}}
		if typed {
			details[1].TypeUrl = details[0].TypeUrl
		}
		s := newSubscription(resource.RequestAuthentication, "n1")
		if _, _, err := s.apply(&discovery.DeltaDiscoveryRequest{ErrorDetail: &status.Status{Details: details}}); err != nil {
			t.Fatal(err)
		}
		if len(s.troubles) > maxTroubles {
			t.Fatalf("%d troubles are kept", len(s.troubles))
		}
		for name, words := range s.troubles {
			if len(words) > maxWords || !utf8.ValidString(words) || !utf8.ValidString(name) {
				t.Fatalf("%q: %q", name, words)
			}
		}
		if proto.Unmarshal(first, &before) == nil && !typed && len(before.Resources) <= maxTroubles && len(s.troubles) != len(before.Resources) {
			t.Fatalf("%d of %d troubles are kept", len(s.troubles), len(before.Resources))
		}
	})
}
