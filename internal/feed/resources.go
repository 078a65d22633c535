package feed

import (
	"maps"
	"slices"
	"sync"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// resources are what the controller sent and did not remove. Of what is in
// force the versions are kept, for the begin of a new stream; what it says is
// in the store, and as it came on disk. Only what is not there yet is kept as
// it came: a mesh is three times as large on the wire as it is in the store.
type resources struct {
	// dirty tells the saver that something changed.
	dirty chan struct{}
	// onDisk: there is a disk, for which changes are kept. Fixed after newResources.
	onDisk bool

	mu sync.Mutex
	// versions of what is in force, by type and name.
	versions map[string]map[string]string
	// rejected resources as they came: a later version of this program may be able
	// to read them.
	rejected map[string]map[string]workload.Resource
	changes
}

// changes are what the file on disk lacks.
type changes struct {
	// based: they are changes to the file. Otherwise they are all there is.
	based bool
	// upserts by type and name; nil for what is no longer in force.
	upserts map[string]map[string]*workload.Resource
}

func newResources(onDisk bool) *resources {
	rs := &resources{
		dirty:    make(chan struct{}, 1),
		onDisk:   onDisk,
		versions: map[string]map[string]string{},
		rejected: map[string]map[string]workload.Resource{},
		changes:  changes{upserts: noUpserts()},
	}
	for _, t := range workload.WaypointTypes {
		rs.versions[t] = map[string]string{}
		rs.rejected[t] = map[string]workload.Resource{}
	}
	return rs
}

func noUpserts() map[string]map[string]*workload.Resource {
	upserts := map[string]map[string]*workload.Resource{}
	for _, t := range workload.WaypointTypes {
		upserts[t] = map[string]*workload.Resource{}
	}
	return upserts
}

// apply follows what the store did with a delta from the controller.
func (rs *resources) apply(delta workload.Delta, rejections []workload.Rejection) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.applyLocked(delta, rejections)
	rs.touch()
}

// touch says that the file lacks something.
func (rs *resources) touch() {
	select {
	case rs.dirty <- struct{}{}:
	default:
	}
}

// load follows what the store did with a part of the file: of what was in force
// there, or of what could not be read. As far as that is still so, it is no
// change to the file.
func (rs *resources) load(delta workload.Delta, unread bool, rejections []workload.Rejection) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.applyLocked(delta, rejections)
	rs.based = true
	for _, r := range delta.Upserts {
		_, bad := rs.rejected[delta.Type][r.Name]
		switch {
		case !unread && bad:
			rs.upserts[delta.Type][r.Name] = nil
		case !unread:
			delete(rs.upserts[delta.Type], r.Name)
		}
	}
}

func (rs *resources) applyLocked(delta workload.Delta, rejections []workload.Rejection) {
	versions, rejected, upserts := rs.versions[delta.Type], rs.rejected[delta.Type], rs.upserts[delta.Type]
	if versions == nil {
		return
	}
	bad := make(map[string]bool, len(rejections))
	for _, r := range rejections {
		bad[r.Name] = true
	}
	for _, name := range delta.Removed {
		if !bad[name] {
			delete(versions, name)
			delete(rejected, name)
			rs.note(upserts, name, nil)
		}
	}
	for i, r := range delta.Upserts {
		if bad[r.Name] {
			rejected[r.Name] = r
			continue
		}
		versions[r.Name] = r.Version
		delete(rejected, r.Name)
		rs.note(upserts, r.Name, &delta.Upserts[i])
	}
}

func (rs *resources) note(upserts map[string]*workload.Resource, name string, r *workload.Resource) {
	if rs.onDisk {
		upserts[name] = r
	}
}

// take returns what the file lacks, and takes it for written.
func (rs *resources) take() (lacks changes, rejected map[string][]workload.Resource) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rejected = map[string][]workload.Resource{}
	for _, t := range workload.WaypointTypes {
		rejected[t] = slices.Collect(maps.Values(rs.rejected[t]))
	}
	lacks = rs.changes
	rs.changes = changes{based: true, upserts: noUpserts()}
	return lacks, rejected
}

// putBack says that what was taken was not written after all.
func (rs *resources) putBack(lacks changes) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.based = lacks.based
	for t, upserts := range lacks.upserts {
		for name, r := range upserts {
			if _, newer := rs.upserts[t][name]; !newer {
				rs.upserts[t][name] = r
			}
		}
	}
	rs.touch()
}

// noVersion is one that no controller gives: told of it, it sends the resource
// anew, or that it is gone.
const noVersion = "lost"

// lost says that the file is gone that the changes are changes to: whatever is
// in force is needed anew.
func (rs *resources) lost() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.changes = changes{upserts: noUpserts()}
	for _, versions := range rs.versions {
		for name := range versions {
			versions[name] = noVersion
		}
	}
}

// whole tells whether the file and the changes make up the state: not while
// what a lost file held has not come anew.
func (rs *resources) whole() bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.based {
		return true
	}
	for t, versions := range rs.versions {
		for name := range versions {
			if rs.upserts[t][name] == nil {
				return false
			}
		}
	}
	return true
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

// known returns the versions of what is known of a type. Rejected resources are
// left out, so that the controller sends them again.
func (rs *resources) known(typeURL string) map[string]string {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	known := make(map[string]string, len(rs.versions[typeURL]))
	for name, version := range rs.versions[typeURL] {
		if version != "" {
			known[name] = version
		}
	}
	return known
}

// names of all resources of a type, the rejected ones too.
func (rs *resources) names(typeURL string) []string {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	names := slices.Collect(maps.Keys(rs.versions[typeURL]))
	for name := range rs.rejected[typeURL] {
		if _, ok := rs.versions[typeURL][name]; !ok {
			names = append(names, name)
		}
	}
	return names
}

// has tells whether names has it.
func (rs *resources) has(typeURL, name string) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	_, good := rs.versions[typeURL][name]
	_, rejected := rs.rejected[typeURL][name]
	return good || rejected
}
