package main

import (
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/controller/gateway"
	"github.com/ambit-mesh/ambit/controller/status"
	"github.com/ambit-mesh/ambit/controller/translate"
)

// through tells status which waypoints stand before pods, whenever that or how far
// it is may have changed.
type through struct {
	// Fixed.
	inForce func(*translate.Bound) bool
	ready   func(*translate.Bound) string
	tell    func(map[types.UID]status.Waypoint)

	mu        sync.Mutex // held while telling: what is told last is the newest
	published bool
	through   map[types.UID][]string
	bound     []*translate.Bound
}

// Published takes what is published now.
func (t *through) Published(r translate.Result) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.published, t.through, t.bound = true, r.Through, r.Bound
	t.tellLocked()
}

// Settled says that some binding came into force, or is ready, or is it no longer.
func (t *through) Settled() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.published {
		t.tellLocked()
	}
}

func (t *through) tellLocked() {
	byPod := make(map[types.UID]status.Waypoint, len(t.through))
	for uid, names := range t.through {
		byPod[uid] = status.Waypoint{Through: strings.Join(names, ",")}
	}
	for _, b := range t.bound {
		if w := byPod[b.UID]; b.Kind == "Pod" {
			if w.Binding = gateway.How(b, t.inForce(b)); !b.Leaving {
				w.Ready = t.ready(b)
			}
			byPod[b.UID] = w
		}
	}
	t.tell(byPod)
}
