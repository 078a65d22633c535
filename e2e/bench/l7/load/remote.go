package load

import (
	"errors"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
)

type remote = process.Remote[request, reply]

// Backends are a process.
type Backends struct{ *remote }

// StartBackends runs the backends in a pod and waits until they listen.
func StartBackends(place process.Place, dir, pki string) (Backends, error) {
	m, err := process.StartRemote[request, reply](place, dir, BackendRole, "backends", pkiVariable+"="+pki)
	if err != nil {
		return Backends{}, err
	}
	if _, err := m.Ask(request{Op: opMark}); err != nil { // they answer once they listen
		return Backends{}, errors.Join(fmt.Errorf("start the backends: %w", err), m.Stop())
	}
	return Backends{m}, nil
}

// Generator makes requests.
type Generator struct{ *remote }

// StartGenerator runs a client in a pod.
func StartGenerator(place process.Place, dir string) (Generator, error) {
	m, err := process.StartRemote[request, reply](place, dir, GeneratorRole, "load")
	return Generator{m}, err
}

// Closed begins a closed loop on so many connections, and returns once they are
// established.
func (g Generator) Closed(to Target, connections int) error {
	_, err := g.Ask(request{Op: opStart, To: to, Connections: connections})
	return err
}

// Open begins an open loop, with so many requests a second.
func (g Generator) Open(to Target, connections, rate int) error {
	_, err := g.Ask(request{Op: opStart, To: to, Connections: connections, Rate: rate})
	return err
}

// Forbidden asks for what policy refuses, and returns the status of the answer.
func (g Generator) Forbidden(to Target) (int, error) {
	r, err := g.Ask(request{Op: opAsk, To: to})
	return r.Status, err
}

// Mark begins the record of latencies, the first time, and returns how many requests
// were answered.
func (g Generator) Mark() (int64, error) {
	r, err := g.Ask(request{Op: opMark})
	return r.Count, err
}

// StopLoad ends the load; the process goes on. The error is anything that failed.
func (g Generator) StopLoad() (Latencies, error) {
	r, err := g.Ask(request{Op: opStop})
	return r.Latencies, err
}

// Reach waits until every request is answered as it shall be.
func (g Generator) Reach(to Target, within time.Duration) error {
	const pause, each = 50 * time.Millisecond, 10
	for deadline := time.Now().Add(within); ; time.Sleep(pause) {
		err := g.Closed(to, each)
		if err == nil {
			time.Sleep(pause)
			if _, err = g.StopLoad(); err == nil {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no responses from %s: %w", to.Address, err)
		}
	}
}
