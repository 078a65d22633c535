package feed

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

func file(t testing.TB) []byte {
	t.Helper()
	rs := newResources(true)
	rs.apply(workload.Delta{Type: workload.ConfigType, Upserts: []workload.Resource{
		workloadtest.Resource(t, &mesh.Config{TrustDomain: "cluster.local"}),
	}}, nil)
	path := filepath.Join(t.TempDir(), "snapshot.pb")
	lacks, rejected := rs.take()
	if err := writeFile(path, magicFull, lacks, rejected); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// decodeFile returns how many resources there are.
func decodeFile(content []byte, magic string) (n int, err error) {
	err = decode(bytes.NewReader(content), magic, func(message []byte) error {
		var response discovery.DeltaDiscoveryResponse
		err := proto.Unmarshal(message, &response)
		n += len(response.Resources)
		return err
	})
	return n, err
}

// No part of a file passes for the file, and no changed byte goes unnoticed.
func TestEveryTruncationAndChangeIsNoticed(t *testing.T) {
	content := file(t)
	if n, err := decodeFile(content, magicFull); err != nil || n != 1 {
		t.Fatalf("%d resources, %v", n, err)
	}
	for n := range content {
		if _, err := decodeFile(content[:n], magicFull); err == nil {
			t.Errorf("the first %d of %d bytes are accepted", n, len(content))
		}
		changed := append([]byte(nil), content...)
		changed[n] ^= byte(1 + rand.IntN(255))
		if _, err := decodeFile(changed, magicFull); err == nil {
			t.Errorf("byte %d changed, accepted", n)
		}
	}
}

func FuzzDecodeFile(f *testing.F) {
	f.Add(file(f))
	f.Fuzz(func(t *testing.T, content []byte) { decodeFile(content, magicFull) })
}

func TestBackoffGrowsToItsLimit(t *testing.T) {
	var b backoff
	limit := backoffMin
	for i := range 30 {
		got := b.next()
		if got < limit/2 || got > limit {
			t.Errorf("wait %d is %s, want %s to %s", i, got, limit/2, limit)
		}
		limit = min(2*limit, backoffMax)
	}
	b.reset()
	if got := b.next(); got > backoffMin {
		t.Errorf("%s after a reset", got)
	}
}

// Negatives are bounded, and the latest is always among them.
func TestNegativesAreBounded(t *testing.T) {
	qs := newQuestions()
	for i := range 3 * maxNegatives {
		addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		qs.mu.Lock()
		qs.rememberLocked(addr)
		n, until := len(qs.negatives), qs.negatives[addr]
		qs.mu.Unlock()
		if n > maxNegatives || !until.After(time.Now()) {
			t.Fatalf("%d negatives, the latest until %s", n, until)
		}
	}
}
