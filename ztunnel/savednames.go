package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/statefile"
	"github.com/ambit-mesh/ambit/ztunnel/egress"
)

const (
	// saveNames is how much of what was learnt a kill may cost: who resolved a
	// name then has to ask again.
	saveNames = 2 * time.Second
	// maxSavedNames of one pod are those that last longest.
	maxSavedNames = 2048
)

var namesKind = statefile.Kind{Name: "names", Version: 1, MaxBytes: 64 << 20}

// savedName is an address that a name has.
type savedName struct {
	Name string     `json:"name"`
	IP   netip.Addr `json:"ip"`
	Ends time.Time  `json:"ends"`
}

// rememberedNames are those that the last process learnt for pods whose way out
// of the mesh is denied, and those that the next one will find.
type rememberedNames struct {
	path   string
	logger *slog.Logger

	mu sync.Mutex
	// Guarded by mu.
	found map[string][]savedName // by the pod's UID; of those not captured yet

	// Owned by run.
	saved  map[string]uint64 // how far those of each pod were saved
	failed bool
}

// readNames finds what the last process left. What is not readable is not there:
// applications have to ask again.
func readNames(path string, logger *slog.Logger) *rememberedNames {
	r := &rememberedNames{path: path, logger: logger}
	r.read()
	return r
}

// read finds it anew: the last process may have run on meanwhile.
func (r *rememberedNames) read() {
	var found map[string][]savedName
	content, err := namesKind.Read(r.path)
	if err == nil {
		err = json.Unmarshal(content, &found)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		found = nil
		r.logger.Error("names that the last process learnt not known: applications have to ask for them again", "path", r.path, "error", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found = found
}

// take returns the names of a pod, once.
func (r *rememberedNames) take(uid string) (all []egress.Learnt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range r.found[uid] {
		all = append(all, egress.Learnt{Name: name.Name, IP: name.IP.Unmap(), Ends: name.Ends})
	}
	delete(r.found, uid)
	return all
}

// run saves what is learnt until the context ends, and once more then.
func (r *rememberedNames) run(ctx context.Context, captured func() []*capture) error {
	ticker := time.NewTicker(saveNames)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
		err := r.save(captured())
		if err != nil && !r.failed {
			r.logger.Error("names not saved: after a restart applications have to ask for them again", "error", err)
		}
		r.failed = err != nil
	}
	return nil
}

// save writes the file if there is anything new.
func (r *rememberedNames) save(captured []*capture) error {
	now := make(map[string]uint64)
	content := make(map[string][]savedName)
	for _, c := range captured {
		if !c.isDenied() {
			continue
		}
		now[c.podUID] = c.egress.Names.Changes()
		all := c.egress.Names.All()
		slices.SortFunc(all, func(a, b egress.Learnt) int { return b.Ends.Compare(a.Ends) })
		for _, l := range all[:min(len(all), maxSavedNames)] {
			content[c.podUID] = append(content[c.podUID], savedName{l.Name, l.IP, l.Ends})
		}
	}
	if maps.Equal(now, r.saved) {
		return nil
	}
	text, err := json.Marshal(content)
	if err == nil && int64(len(text)) > namesKind.MaxBytes {
		err = fmt.Errorf("%d bytes, %d at most", len(text), namesKind.MaxBytes)
	}
	if err != nil {
		return fmt.Errorf("encode names: %w", err)
	}
	if err := namesKind.Write(r.path, text); err != nil {
		return err
	}
	r.saved = now
	return nil
}

// isDenied tells whether the pod's way out is denied, as far as the kernel was told.
func (c *capture) isDenied() bool {
	c.leaving.mu.Lock()
	defer c.leaving.mu.Unlock()
	return c.leaving.told.Restrict()
}
