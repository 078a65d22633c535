package load

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
)

// running is a load that has been started.
type running interface {
	// mark returns the operations since the first mark, which begins the
	// record of latencies.
	mark() int64
	// stop ends the load and all its connections. It fails if anything failed.
	stop() (Latencies, error)
	// failed tells of a failure so far.
	failed() error
}

type generator struct {
	load running
}

func runGenerator(in io.Reader, out io.Writer) error {
	var g generator
	return process.Serve(in, out, g.answer)
}

var errNotStarted = errors.New("no load is running")

func (g *generator) answer(q request) (r reply, err error) {
	if q.Op == opStart {
		if g.load != nil {
			return r, errors.New("a load is running")
		}
		g.load, err = start(q.Kind, q.To, q.N)
		return r, err
	}
	if g.load == nil {
		return r, errNotStarted
	}
	switch q.Op {
	case opMark:
		return reply{Count: g.load.mark()}, g.load.failed()
	case opStop:
		r.Latencies, err = g.load.stop()
		g.load = nil
		return r, err
	}
	return r, fmt.Errorf("no such request: %q", q.Op)
}

// start returns once all of a load's connections are established.
func start(kind Kind, to netip.AddrPort, n int) (running, error) {
	switch kind {
	case Bulk:
		return orNil(startBulk(to, n))
	case Ping:
		return orNil(startPing(to, n))
	case Churn:
		return startChurn(to, n), nil
	case Idle:
		return orNil(startIdle(to, n))
	}
	return nil, fmt.Errorf("no such load: %q", kind)
}

// orNil keeps a nil pointer from becoming an interface that is not nil.
func orNil[T running](load T, err error) (running, error) {
	if err != nil {
		return nil, err
	}
	return load, nil
}
