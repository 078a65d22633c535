package h2spec

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// asConnect is a connection on which the suite's requests arrive as CONNECT, so
// that streams open and carry data. Every other frame arrives as it was sent.
type asConnect struct {
	net.Conn // without the Wire: what is read from it is not what came
	dec      *hpack.Decoder
	enc      *hpack.Encoder
	block    bytes.Buffer
	preface  int // bytes of it that have come
	ready    []byte
}

func newAsConnect(conn *tls.Conn) *asConnect {
	c := &asConnect{Conn: conn, dec: hpack.NewDecoder(4096, nil)}
	c.enc = hpack.NewEncoder(&c.block)
	c.enc.SetMaxDynamicTableSizeLimit(0)
	return c
}

func (c *asConnect) Read(p []byte) (int, error) {
	for len(c.ready) == 0 {
		if err := c.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.ready)
	c.ready = c.ready[n:]
	return n, nil
}

// next reads the preface, or one frame.
func (c *asConnect) next() error {
	if c.preface == 0 {
		c.preface = len(http2.ClientPreface)
		c.ready = make([]byte, c.preface)
		_, err := io.ReadFull(c.Conn, c.ready)
		return err
	}
	head := make([]byte, 9)
	if _, err := io.ReadFull(c.Conn, head); err != nil {
		return err
	}
	payload := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
	if _, err := io.ReadFull(c.Conn, payload); err != nil {
		return err
	}
	if http2.FrameType(head[3]) == http2.FrameHeaders {
		payload = c.translate(payload)
		binary.BigEndian.PutUint32(head, uint32(len(payload))<<8|uint32(http2.FrameHeaders))
	}
	c.ready = append(head, payload...)
	return nil
}

// translate makes a request a CONNECT, and leaves other blocks of headers as they
// are. The cases that are run through it send them whole and without padding.
func (c *asConnect) translate(block []byte) []byte {
	fields, err := c.dec.DecodeFull(block)
	if err != nil {
		return block
	}
	c.block.Reset()
	for _, f := range fields {
		switch f.Name {
		case ":method":
			f.Value = "CONNECT"
		case ":scheme", ":path":
			continue
		}
		c.enc.WriteField(f)
	}
	return bytes.Clone(c.block.Bytes())
}
