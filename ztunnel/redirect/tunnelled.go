package redirect

import (
	"errors"
	"fmt"
	"maps"

	"github.com/ambit-mesh/ambit/bpf"
)

// TunnelOnly says where ztunnel sends nothing of TCP but in tunnels, for whatever pod of the node: the guards drop it, whatever
// this process does. It holds until it is called again, whatever becomes of the process. What the kernel does not take is an
// error, and what was said before about it stays.
func (r *Redirect) TunnelOnly(want map[bpf.TunnelledTo]bpf.Tunnelled) error {
	r.tunnelled.mu.Lock()
	defer r.tunnelled.mu.Unlock()
	if r.tunnelled.told == nil {
		told, err := r.node.Tunnelled()
		if err != nil {
			return fmt.Errorf("read what is reached by tunnels alone: %w", err)
		}
		r.tunnelled.told = told
	}
	// What is new goes first, if there is room for it beside what goes.
	if r.addTunnelled(want) == nil {
		return r.dropTunnelled(want)
	}
	return errors.Join(r.dropTunnelled(want), r.addTunnelled(want))
}

func (r *Redirect) addTunnelled(want map[bpf.TunnelledTo]bpf.Tunnelled) error {
	var errs []error
	for to, by := range want {
		if r.tunnelled.told[to] == by {
			continue
		}
		if err := r.node.SetTunnelled(to, by); err != nil {
			errs = append(errs, fmt.Errorf("have %s reached by tunnels alone: %w", to, err))
			if len(errs) == enoughErrors {
				break
			}
			continue
		}
		r.tunnelled.told[to] = by
	}
	return errors.Join(errs...)
}

// enoughErrors tell what is wrong with all.
const enoughErrors = 3

func (r *Redirect) dropTunnelled(want map[bpf.TunnelledTo]bpf.Tunnelled) error {
	var errs []error
	for to := range r.tunnelled.told {
		if _, ok := want[to]; ok {
			continue
		}
		if err := r.node.RemoveTunnelled(to); err != nil {
			errs = append(errs, fmt.Errorf("have %s reached in plaintext too: %w", to, err))
			continue
		}
		delete(r.tunnelled.told, to)
	}
	return errors.Join(errs...)
}

// TunnelledOnly returns what TunnelOnly said last, in whatever process.
func (r *Redirect) TunnelledOnly() (map[bpf.TunnelledTo]bpf.Tunnelled, error) {
	r.tunnelled.mu.Lock()
	defer r.tunnelled.mu.Unlock()
	if r.tunnelled.told != nil {
		return maps.Clone(r.tunnelled.told), nil
	}
	return r.node.Tunnelled()
}
