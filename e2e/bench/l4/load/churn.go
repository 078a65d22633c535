package load

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
)

// churn is workers that connect, exchange a message and close.
type churn struct {
	ending  atomic.Bool
	count   atomic.Int64
	workers sync.WaitGroup
	fault   *fault
}

func startChurn(to netip.AddrPort, n int) *churn {
	c := &churn{fault: newFault()}
	for range n {
		c.workers.Go(func() {
			message := newMessage()
			for !c.ending.Load() {
				if err := once(to, message); err != nil {
					c.fault.set(err)
					return
				}
				c.count.Add(1)
			}
		})
	}
	return c
}

func once(to netip.AddrPort, message []byte) error {
	conn, err := dial(to)
	if err != nil {
		return err
	}
	if err := exchange(conn, message); err != nil {
		conn.Close()
		return err
	}
	if err := conn.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}

func (c *churn) mark() int64   { return c.count.Load() }
func (c *churn) failed() error { return c.fault.get() }

func (c *churn) stop() (Latencies, error) {
	c.ending.Store(true)
	c.workers.Wait()
	return Latencies{}, c.fault.get()
}
