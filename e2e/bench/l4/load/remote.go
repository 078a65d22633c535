package load

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
)

// remote is one of the two processes.
type remote = process.Remote[request, reply]

// App is the server.
type App struct{ *remote }

// StartApp runs the server in a pod and waits until it listens.
func StartApp(place process.Place, dir, name string) (App, error) {
	m, err := process.StartRemote[request, reply](place, dir, AppRole, name)
	if err != nil {
		return App{}, err
	}
	app := App{m}
	if _, err := app.Received(); err != nil { // it answers once it listens
		return App{}, errors.Join(fmt.Errorf("start the application: %w", err), m.Stop())
	}
	return app, nil
}

// Received is how many bytes of bulk have arrived so far.
func (a App) Received() (int64, error) {
	r, err := a.Ask(request{Op: opReceived})
	return r.Count, err
}

// Generator is a client.
type Generator struct{ *remote }

// StartGenerator runs a client in a pod.
func StartGenerator(place process.Place, dir, name string) (Generator, error) {
	m, err := process.StartRemote[request, reply](place, dir, GeneratorRole, name)
	return Generator{m}, err
}

// Start begins a load and returns once its connections are established.
func (g Generator) Start(kind Kind, to netip.AddrPort, n int) error {
	_, err := g.Ask(request{Op: opStart, Kind: kind, To: to, N: n})
	if err != nil {
		return fmt.Errorf("start %s: %w", kind, err)
	}
	return nil
}

// Mark begins the record of latencies, the first time, and returns how much the
// load has done.
func (g Generator) Mark() (int64, error) {
	r, err := g.Ask(request{Op: opMark})
	return r.Count, err
}

// Stop ends the load; the process goes on. The error is anything that failed.
func (g Generator) StopLoad() (Latencies, error) {
	r, err := g.Ask(request{Op: opStop})
	return r.Latencies, err
}

// Reach waits until a message goes to the server and comes back.
func (g Generator) Reach(to netip.AddrPort, within time.Duration) error {
	const pause = 50 * time.Millisecond
	for deadline := time.Now().Add(within); ; time.Sleep(pause) {
		err := g.Start(Idle, to, 1)
		if err == nil {
			if _, err = g.StopLoad(); err == nil {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("nothing comes back from %s: %w", to, err)
		}
	}
}
