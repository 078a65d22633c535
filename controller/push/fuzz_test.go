package push

import (
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
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
