package feed

import (
	"maps"
	"slices"
	"sync"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// resources are what the controller sent and did not remove, as it sent it: for
// the versions that a new stream begins with, and for the disk.
type resources struct {
	// dirty tells the saver that something changed.
	dirty chan struct{}

	mu sync.Mutex
	// good resources by type and name: those that the store works with.
	good map[string]map[string]workload.Resource
	// rejected ones, which a later version of this program may be able to read.
	rejected map[string]map[string]workload.Resource
}

func newResources() *resources {
	rs := &resources{
		dirty:    make(chan struct{}, 1),
		good:     map[string]map[string]workload.Resource{},
		rejected: map[string]map[string]workload.Resource{},
	}
	for _, t := range workload.Types {
		rs.good[t] = map[string]workload.Resource{}
		rs.rejected[t] = map[string]workload.Resource{}
	}
	return rs
}

// apply follows what the store did with a delta.
func (rs *resources) apply(delta workload.Delta, rejections []workload.Rejection) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	good, rejected := rs.good[delta.Type], rs.rejected[delta.Type]
	if good == nil {
		return
	}
	bad := make(map[string]bool, len(rejections))
	for _, r := range rejections {
		bad[r.Name] = true
	}
	for _, name := range delta.Removed {
		if !bad[name] {
			delete(good, name)
			delete(rejected, name)
		}
	}
	for _, r := range delta.Upserts {
		if bad[r.Name] {
			rejected[r.Name] = r
			continue
		}
		good[r.Name] = r
		delete(rejected, r.Name)
	}
	select {
	case rs.dirty <- struct{}{}:
	default:
	}
}

// clean tells whether something changed, and forgets it.
func (rs *resources) clean() bool {
	select {
	case <-rs.dirty:
		return true
	default:
		return false
	}
}

// versions of what is known of a type. Rejected resources are left out, so that
// the controller sends them again.
func (rs *resources) versions(typeURL string) map[string]string {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	versions := make(map[string]string, len(rs.good[typeURL]))
	for name, r := range rs.good[typeURL] {
		if r.Version != "" {
			versions[name] = r.Version
		}
	}
	return versions
}

// names of all resources of a type, the rejected ones too.
func (rs *resources) names(typeURL string) []string {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	names := slices.Collect(maps.Keys(rs.good[typeURL]))
	for name := range rs.rejected[typeURL] {
		if _, ok := rs.good[typeURL][name]; !ok {
			names = append(names, name)
		}
	}
	return names
}

// has tells whether names has it.
func (rs *resources) has(typeURL, name string) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	_, good := rs.good[typeURL][name]
	_, rejected := rs.rejected[typeURL][name]
	return good || rejected
}

// list returns the resources of a type, in no order.
func (rs *resources) list(typeURL string) (good, rejected []workload.Resource) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return slices.Collect(maps.Values(rs.good[typeURL])), slices.Collect(maps.Values(rs.rejected[typeURL]))
}
