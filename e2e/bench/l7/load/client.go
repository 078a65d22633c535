package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/plan"
)

// client is one connection.
type client struct {
	conn   net.Conn
	buffer []byte
	read   int // what of the response under way is in buffer
}

// newClient connects, and has one request answered, which is looked at closely.
func newClient(c carrier, first *plan.Request) (*client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(dialTimeout))
	if err := meet(conn, first); err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetDeadline(time.Time{})
	return &client{conn: conn, buffer: make([]byte, maxHead+plan.BodySize)}, nil
}

// Ask makes the first request, on a connection to a proxy.
func Ask(conn net.Conn) error { return meet(conn, &plan.Requests()[0]) }

// forbidden asks for what policy refuses, and returns the status of the answer.
func forbidden(to Target) (int, error) {
	c, err := newCarrier(to)
	if err != nil {
		return 0, err
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	conn, err := c.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(dialTimeout))
	if _, err := conn.Write(plan.ForbiddenRequest()); err != nil {
		return 0, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, err
	}
	return response.StatusCode, nil
}

// meet proves that responses are what the cheaper look later on takes them for.
func meet(conn net.Conn, r *plan.Request) error {
	if _, err := conn.Write(r.Text); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return fmt.Errorf("read response: %w", err)
	}
	body, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return fmt.Errorf("read response: %w", err)
	case response.StatusCode != http.StatusOK || response.ContentLength != plan.BodySize || len(body) != plan.BodySize || reader.Buffered() > 0:
		return fmt.Errorf("response: %s with %d bytes (%d announced), and %d behind it", response.Status, len(body), response.ContentLength, reader.Buffered())
	case response.Close:
		return fmt.Errorf("response: it ends the connection")
	case !strings.Contains(r.Backends, response.Header.Get(plan.NameField)) || len(response.Header.Get(plan.NameField)) != 1:
		return fmt.Errorf("response: from backend %q, want one of %q", response.Header.Get(plan.NameField), r.Backends)
	}
	return nil
}

func (c *client) send(r *plan.Request) error {
	if _, err := c.conn.Write(r.Text); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	return nil
}

var (
	statusOK  = []byte("HTTP/1.1 200 ")
	nameField = []byte("\r\n" + plan.NameField + ": ")
)

// receive reads a response. sent returns what was asked for, once something has come.
// An error with nothing read is that of the connection.
func (c *client) receive(sent func() *plan.Request) error {
	for c.read = 0; ; {
		n, err := c.conn.Read(c.buffer[c.read:])
		c.read += n
		if end := bytes.Index(c.buffer[:c.read], headEnd); end >= 0 && c.read >= end+len(headEnd)+plan.BodySize {
			return c.check(end, sent())
		}
		if err == nil && c.read == len(c.buffer) {
			err = fmt.Errorf("longer than %d bytes", c.read)
		}
		if err != nil {
			return fmt.Errorf("read response: %w", err)
		}
	}
}

// check looks at the whole of a response, whose head ends at end.
func (c *client) check(end int, r *plan.Request) error {
	head := c.buffer[:end]
	if r == nil || c.read > end+len(headEnd)+plan.BodySize {
		return fmt.Errorf("response: more than was asked for")
	}
	if !bytes.HasPrefix(head, statusOK) {
		line, _, _ := bytes.Cut(head, []byte("\r\n"))
		return fmt.Errorf("response: %s", line)
	}
	at := bytes.Index(head, nameField) + len(nameField)
	if at < len(nameField) || at >= end || strings.IndexByte(r.Backends, head[at]) < 0 {
		return fmt.Errorf("response: not from one of the backends %q", r.Backends)
	}
	return nil
}

// dialAll opens n connections, some at a time.
func dialAll(c carrier, n int, requests []plan.Request) ([]*client, error) {
	const openers = 8
	clients := make([]*client, n)
	failed := make(chan error, openers)
	for worker := range openers {
		go func() {
			for i := worker; i < n; i += openers {
				var err error
				if clients[i], err = newClient(c, &requests[i%len(requests)]); err != nil {
					failed <- fmt.Errorf("open connection: %w", err)
					return
				}
			}
			failed <- nil
		}()
	}
	var err error
	for range openers {
		if e := <-failed; err == nil {
			err = e
		}
	}
	if err != nil {
		closeAll(clients)
		return nil, err
	}
	return clients, nil
}

func closeAll(clients []*client) {
	for _, c := range clients {
		if c != nil {
			c.conn.Close()
		}
	}
}
