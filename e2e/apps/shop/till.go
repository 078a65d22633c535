package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
)

// readLine reads up to the end of a line, a byte at a time: it leaves the rest
// to whoever reads next.
func readLine(r io.Reader) (string, error) {
	var line strings.Builder
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(r, b); err != nil {
			return line.String(), err
		}
		if b[0] == '\n' {
			return line.String(), nil
		}
		line.WriteByte(b[0])
	}
}

// serveTill speaks first: a greeting with the client's address. Then it answers
// every line with a receipt.
func serveTill(ctx context.Context) error {
	listener, err := net.Listen("tcp", env("LISTEN", ":7000"))
	if err != nil {
		return err
	}
	defer listener.Close()
	go accept(listener, func(conn net.Conn) {
		fmt.Fprintf(conn, "220 till ready for %s\n", conn.RemoteAddr())
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			if _, err := fmt.Fprintf(conn, "250 receipt for %s\n", lines.Text()); err != nil {
				return
			}
		}
	})
	return serveHealth(ctx)
}

func accept(listener net.Listener, serve func(net.Conn)) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			serve(conn)
		}()
	}
}
