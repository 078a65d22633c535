package load

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// bulk is streams that send as fast as they can, in one direction.
type bulk struct {
	conns   []*net.TCPConn
	sent    atomic.Int64
	ending  atomic.Bool
	streams sync.WaitGroup
	fault   *fault
}

func startBulk(to netip.AddrPort, n int) (*bulk, error) {
	b := &bulk{fault: newFault()}
	for range n {
		conn, err := dialSink(to)
		if err != nil {
			b.close()
			return nil, fmt.Errorf("open stream to %s: %w", to, err)
		}
		b.conns = append(b.conns, conn)
	}
	for _, conn := range b.conns {
		b.streams.Go(func() {
			if err := b.send(conn); err != nil {
				b.fault.set(err)
			}
		})
	}
	return b, nil
}

// dialSink connects and waits until the server is there.
func dialSink(to netip.AddrPort) (*net.TCPConn, error) {
	conn, err := dial(to)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(dialTimeout))
	if _, err = conn.Write([]byte{modeSink}); err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	return conn, nil
}

// send sends until the load ends, and has the server confirm every byte.
func (b *bulk) send(conn *net.TCPConn) error {
	buffer := make([]byte, bulkBuffer)
	total := uint64(1) // the mode
	for !b.ending.Load() {
		n, err := conn.Write(buffer)
		total += uint64(n)
		b.sent.Add(int64(n))
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	if err := conn.CloseWrite(); err != nil {
		return fmt.Errorf("end stream: %w", err)
	}
	var answer [8]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return fmt.Errorf("hear how much has arrived: %w", err)
	}
	if arrived := binary.BigEndian.Uint64(answer[:]); arrived != total {
		return fmt.Errorf("sent %d bytes, %d have arrived", total, arrived)
	}
	return nil
}

func (b *bulk) mark() int64   { return b.sent.Load() }
func (b *bulk) failed() error { return b.fault.get() }

func (b *bulk) stop() (Latencies, error) {
	for _, conn := range b.conns {
		conn.SetDeadline(time.Now().Add(stopTimeout))
	}
	b.ending.Store(true)
	b.streams.Wait()
	b.close()
	return Latencies{}, b.fault.get()
}

func (b *bulk) close() {
	for _, conn := range b.conns {
		conn.Close()
	}
}
