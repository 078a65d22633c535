package load

import (
	"errors"
	"fmt"
	"io"

	"github.com/ambit-mesh/ambit/e2e/bench/process"
)

// running is a load that has been started.
type running interface {
	// mark returns how many requests were answered so far; the first one begins the
	// record of latencies.
	mark() int64
	// stop ends the load and all its connections. It fails if anything failed.
	stop() (Latencies, error)
	// failed tells of a failure so far.
	failed() error
}

func runGenerator(in io.Reader, out io.Writer) error {
	var load running
	return process.Serve(in, out, func(q request) (r reply, err error) {
		switch {
		case q.Op == opAsk:
			r.Status, err = forbidden(q.To)
			return r, err
		case q.Op == opStart && load != nil:
			return r, errors.New("a load is running")
		case q.Op == opStart:
			load, err = start(q)
			return r, err
		case load == nil:
			return r, errors.New("no load is running")
		case q.Op == opMark:
			return reply{Count: load.mark()}, load.failed()
		case q.Op == opStop:
			r.Latencies, err = load.stop()
			load = nil
			return r, err
		}
		return r, fmt.Errorf("no such request: %q", q.Op)
	})
}

// start returns once all of a load's connections are established.
func start(q request) (running, error) {
	if q.Rate > 0 {
		return orNil(startOpen(q.To, q.Connections, q.Rate))
	}
	return orNil(startClosed(q.To, q.Connections))
}

// orNil keeps a nil pointer from becoming an interface that is not nil.
func orNil[T running](load T, err error) (running, error) {
	if err != nil {
		return nil, err
	}
	return load, nil
}
