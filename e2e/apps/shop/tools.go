package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const dialTimeout = 10 * time.Second

// get prints the bodies of N requests, each on a connection of its own.
func get(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("get", flag.ExitOnError)
	n := flags.Int("n", 1, "number of requests")
	timeout := flags.Duration("timeout", dialTimeout, "of each")
	flags.Parse(args)
	client := &http.Client{Timeout: *timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	for range *n {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, flags.Arg(0), nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return errno(err)
		}
		_, err = io.Copy(os.Stdout, response.Body)
		response.Body.Close()
		if err != nil {
			return err
		}
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", response.Status)
		}
	}
	return nil
}

// errno says a system error by its symbol, so that tests need no prose.
func errno(err error) error {
	for symbol, number := range map[string]syscall.Errno{
		"ECONNREFUSED": syscall.ECONNREFUSED, "ECONNRESET": syscall.ECONNRESET,
		"ETIMEDOUT": syscall.ETIMEDOUT, "EHOSTUNREACH": syscall.EHOSTUNREACH,
	} {
		if errors.Is(err, number) {
			return fmt.Errorf("%s: %w", symbol, err)
		}
	}
	return err
}

// dial connects, and prints both ends as this side sees them.
func dial(ctx context.Context, args []string) error {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", args[0])
	if err != nil {
		return errno(err)
	}
	defer conn.Close()
	fmt.Println(conn.LocalAddr(), conn.RemoteAddr())
	return nil
}

// ask sends a datagram, again if it may be lost, and prints the answer.
func ask(ctx context.Context, args []string) error {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "udp", args[0])
	if err != nil {
		return errno(err)
	}
	defer conn.Close()
	answer := make([]byte, 1500)
	for range 3 {
		// What is dropped on its way may be told, or not.
		_, err = fmt.Fprint(conn, "hello")
		if err == nil {
			conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			var n int
			if n, err = conn.Read(answer); err == nil {
				fmt.Println(string(answer[:n]))
				return nil
			}
		}
	}
	return errno(err)
}

// sayToTill prints the till's greeting and its answer to one line.
func sayToTill(ctx context.Context, args []string) error {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", args[0])
	if err != nil {
		return errno(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(dialTimeout))
	greeting, err := readLine(conn)
	if err != nil {
		return errno(err)
	}
	fmt.Println(greeting)
	fmt.Fprintln(conn, strings.Join(args[1:], " "))
	receipt, err := readLine(conn)
	fmt.Println(receipt)
	return err
}

// wire sends N random bytes to a checksum port, half-closes, and compares the
// count and checksum that come back.
func wire(ctx context.Context, args []string) error {
	n, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	return sendChecked(ctx, args[0], n)
}

func sendChecked(ctx context.Context, address string, n int64) error {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		return errno(err)
	}
	defer conn.Close()
	hash := sha256.New()
	source := rand.NewChaCha8([32]byte(sha256.New().Sum(nil)))
	if _, err := io.Copy(io.MultiWriter(conn, hash), io.LimitReader(source, n)); err != nil {
		return errno(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	answer, err := readLine(conn)
	if err != nil {
		return errno(err)
	}
	want := fmt.Sprintf("%d %s", n, hex.EncodeToString(hash.Sum(nil)))
	if answer != want {
		return fmt.Errorf("sent %s, the server received %s", want, answer)
	}
	fmt.Println(answer)
	return nil
}

// flood opens N checked connections at once, and prints how many were right.
func flood(ctx context.Context, args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		right  int
		errs   []error
		opened = make(chan struct{})
	)
	ready := sync.WaitGroup{}
	ready.Add(n)
	for range n {
		wg.Go(func() {
			err := floodOne(ctx, args[0], &ready, opened)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				right++
			} else if len(errs) < 3 {
				errs = append(errs, err)
			}
		})
	}
	ready.Wait() // all are open, or failed: only now does any send
	close(opened)
	wg.Wait()
	fmt.Println(right, "of", n)
	return errors.Join(errs...)
}

func floodOne(ctx context.Context, address string, ready *sync.WaitGroup, opened <-chan struct{}) error {
	conn, err := (&net.Dialer{Timeout: 30 * time.Second}).DialContext(ctx, "tcp", address)
	ready.Done()
	if err != nil {
		return errno(err)
	}
	defer conn.Close()
	<-opened
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	question := make([]byte, 1024)
	rand.NewChaCha8([32]byte{}).Read(question)
	if _, err := conn.Write(question); err != nil {
		return errno(err)
	}
	answer := make([]byte, len(question))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return errno(err)
	}
	if string(answer) != string(question) {
		return errors.New("the echo differs")
	}
	return nil
}

func sleep(ctx context.Context, args []string) error {
	d, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
	return nil
}
