package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// exchange asks one server. The answer bears the identifier of the question.
func exchange(ctx context.Context, q question, server netip.AddrPort, stream bool) ([]byte, error) {
	ask := exchangeDatagram
	if stream {
		ask = exchangeStream
	}
	// Whoever would answer in the server's name has to guess it, and the port (RFC 5452 section 4).
	other := uint16(rand.Uint32())
	asked := append([]byte(nil), q.message...)
	setID(asked, other)
	answer, err := ask(ctx, q, asked, server)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	setID(answer, id(q.message))
	return answer, nil
}

func exchangeDatagram(ctx context.Context, q question, asked []byte, server netip.AddrPort) ([]byte, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer deadline(ctx, conn)()
	if _, err := conn.Write(asked); err != nil {
		return nil, err
	}
	answer := make([]byte, min(q.size, maxMessage)+1)
	for {
		n, err := conn.Read(answer)
		if err != nil {
			return nil, err
		}
		// Anything else is a late answer, or a forged one: the right one may follow.
		if q.answeredBy(answer[:n], id(asked)) {
			return answer[:n], nil
		}
	}
}

var errNotAnAnswer = errors.New("the answer is not one to the question")

func exchangeStream(ctx context.Context, q question, asked []byte, server netip.AddrPort) ([]byte, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer deadline(ctx, conn)()
	if err := writeMessage(conn, asked); err != nil {
		return nil, err
	}
	answer, err := readMessage(conn)
	if err != nil {
		return nil, err
	}
	if !q.answeredBy(answer, id(asked)) {
		return nil, errNotAnAnswer
	}
	return answer, nil
}

// deadline ends what conn waits for with ctx; the returned function is to be called.
func deadline(ctx context.Context, conn net.Conn) func() bool {
	if at, ok := ctx.Deadline(); ok {
		conn.SetDeadline(at)
	}
	return context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
}

// writeMessage writes a message as streams have it (RFC 1035 section 4.2.2).
func writeMessage(w io.Writer, m []byte) error {
	framed := make([]byte, 2, 2+len(m))
	binary.BigEndian.PutUint16(framed, uint16(len(m)))
	_, err := w.Write(append(framed, m...)) // in one segment (RFC 7766 section 8)
	return err
}

// readMessage reads a message from a stream. The error is io.EOF where the stream ends between messages.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(r, m); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return m, nil
}
