package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// refused is what a client saw of the end of its permission.
type refused struct {
	// LastByte of the connection that it had, and how that ended.
	LastByte time.Time `json:"last_byte"`
	Ended    string    `json:"ended"`
	// FirstRefused is when a new connection failed, before any that did not.
	FirstRefused time.Time `json:"first_refused"`
	Refused      string    `json:"refused"`
}

const (
	// refusedPatience is for the answer over a new connection: one that hangs is
	// refused, only less kindly.
	refusedPatience = 500 * time.Millisecond
	// refusedStreak of new connections in a row is for good.
	refusedStreak = 5
	refusedPause  = time.Millisecond
)

// untilRefused reads a connection to CLOCK, and opens new ones to ECHO one after
// the other, until neither works any more. It says "ready" once both do, and
// what it saw at the end.
func untilRefused(ctx context.Context, args []string) error {
	clock, echo := args[0], args[1]
	live, err := net.DialTimeout("tcp", clock, dialTimeout)
	if err != nil {
		return errno(err)
	}
	defer live.Close()
	context.AfterFunc(ctx, func() { live.Close() })
	lines := bufio.NewReader(live)
	if _, err := lines.ReadString('\n'); err != nil {
		return errno(err)
	}
	if err := echoOnce(echo); err != nil {
		return errno(err)
	}
	var seen refused
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		seen.LastByte, seen.Ended = readToTheEnd(lines)
	}()
	fmt.Println("ready")
	for failed := 0; failed < refusedStreak; time.Sleep(refusedPause) {
		err := echoOnce(echo)
		if err == nil {
			failed = 0
			continue
		}
		if failed++; failed == 1 {
			seen.FirstRefused, seen.Refused = time.Now(), errno(err).Error()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	select {
	case <-ended:
	case <-time.After(dialTimeout):
		return errors.New("new connections are refused, and the old one lives on")
	}
	return json.NewEncoder(os.Stdout).Encode(seen)
}

// untilEnded reads a connection to CLOCK until it ends. It says "ready" once there
// is something to read, and what it saw at the end.
func untilEnded(ctx context.Context, args []string) error {
	live, err := net.DialTimeout("tcp", args[0], dialTimeout)
	if err != nil {
		return errno(err)
	}
	defer live.Close()
	context.AfterFunc(ctx, func() { live.Close() })
	lines := bufio.NewReader(live)
	if _, err := lines.ReadString('\n'); err != nil {
		return errno(err)
	}
	fmt.Println("ready")
	var seen refused
	seen.LastByte, seen.Ended = readToTheEnd(lines)
	return json.NewEncoder(os.Stdout).Encode(seen)
}

// readToTheEnd returns when the last byte came.
func readToTheEnd(r io.Reader) (last time.Time, ended string) {
	last = time.Now()
	for buffer := make([]byte, 4096); ; {
		n, err := r.Read(buffer)
		if n > 0 {
			last = time.Now()
		}
		if err != nil {
			return last, errno(err).Error()
		}
	}
}

func echoOnce(address string) error {
	conn, err := net.DialTimeout("tcp", address, refusedPatience)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(refusedPatience))
	if _, err := conn.Write([]byte{'?'}); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}
