package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// rated is what became of connections that were opened at a rate.
type rated struct {
	Opened   int      `json:"opened"`
	Failed   int      `json:"failed"`
	Examples []string `json:"examples,omitempty"`
	// Slowest took so long until its answer.
	Slowest time.Duration `json:"slowest"`
	// Standing is how the connection ended that stood from the start; empty if it
	// stands.
	Standing string `json:"standing,omitempty"`
}

// ratePatience is for one connection and its answer.
const ratePatience = 5 * time.Second

// openAtRate opens so many connections to ECHO a second, whatever became of those before,
// until its standard input ends, and uses one that stands all the while. It says
// "ready" once that does. Each line that it reads has it say what has been since the
// last; so does the end.
func openAtRate(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("rate", flag.ExitOnError)
	perSecond := flags.Int("per-second", 100, "connections")
	flags.Parse(args)
	address := flags.Arg(0)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	standing, err := net.DialTimeout("tcp", address, ratePatience)
	if err != nil {
		return errno(err)
	}
	defer standing.Close()

	var (
		mu      sync.Mutex
		current rated
		ended   string
		opening sync.WaitGroup
	)
	report := func() error {
		mu.Lock()
		defer mu.Unlock()
		current.Standing = ended
		err := json.NewEncoder(os.Stdout).Encode(current)
		current = rated{}
		return err
	}
	opening.Go(func() {
		for ctx.Err() == nil {
			if err := echo(standing); err != nil && ctx.Err() == nil {
				mu.Lock()
				defer mu.Unlock()
				ended = fmt.Sprintf("%s %v", time.Now().Format(time.StampMilli), errno(err))
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	fmt.Println("ready")
	opening.Go(func() {
		for ticker := time.NewTicker(time.Second / time.Duration(*perSecond)); ; {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			opening.Go(func() {
				began := time.Now()
				err := echoAnew(address)
				mu.Lock()
				defer mu.Unlock()
				current.Opened++
				current.Slowest = max(current.Slowest, time.Since(began))
				if err != nil {
					if current.Failed++; len(current.Examples) < maxExamples {
						current.Examples = append(current.Examples, fmt.Sprintf("%s %v", time.Now().Format(time.StampMilli), errno(err)))
					}
				}
			})
		}
	})
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if err := report(); err != nil {
			return err
		}
	}
	stop()
	opening.Wait()
	return report()
}

func echoAnew(address string) error {
	conn, err := net.DialTimeout("tcp", address, ratePatience)
	if err != nil {
		return err
	}
	defer conn.Close()
	return echo(conn)
}

// echo has a byte come back.
func echo(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(ratePatience))
	if _, err := conn.Write([]byte{'?'}); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}
