package dns

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// serveStream answers the questions of one connection, some at a time and in any order (RFC 7766 section 6.2.1.1), until the
// client has no more, or says nothing for idleTimeout. While draining, no new question is read.
func (p *Proxy) serveStream(draining, cut context.Context, conn *net.TCPConn, over func()) {
	defer over()
	var group sync.WaitGroup
	defer conn.Close()
	defer group.Wait()
	defer context.AfterFunc(draining, func() { conn.SetReadDeadline(time.Unix(1, 0)) })()
	defer context.AfterFunc(cut, func() { conn.Close() })()
	server := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	server = netip.AddrPortFrom(server.Addr().Unmap(), server.Port())

	var writing sync.Mutex
	send := func(answer []byte) {
		writing.Lock()
		defer writing.Unlock()
		conn.SetWriteDeadline(time.Now().Add(idleTimeout))
		if err := writeMessage(conn, answer); err != nil {
			conn.Close() // what follows would not be understood
		}
	}
	pipelined := make(chan struct{}, maxPipelined)
	for draining.Err() == nil {
		conn.SetReadDeadline(time.Now().Add(idleTimeout))
		if draining.Err() != nil { // else the deadline would be put off
			return
		}
		m, err := readMessage(conn)
		if err != nil {
			return
		}
		q, refused := readQuestion(m)
		if refused != nil {
			p.refuse(q, refused, "tcp", send)
			if refused.silent {
				return
			}
			continue
		}
		pipelined <- struct{}{}
		if !p.enter() {
			<-pipelined
			p.refuse(q, errOverloaded, "tcp", send)
			continue
		}
		group.Go(func() {
			defer func() { <-pipelined }()
			defer p.leave()
			send(p.answer(cut, q, server, true))
		})
	}
}
