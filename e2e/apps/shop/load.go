package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// phase is what requests met between two marks.
type phase struct {
	// Outcomes by status, or by the symbol of the error.
	Outcomes map[string]int `json:"outcomes"`
	// Served of those that were answered with 200, by who did.
	Served map[string]int `json:"served"`
	// Unchecked are answers of a server that the request came to unchecked.
	Unchecked int `json:"unchecked"`
	// Examples of failures.
	Examples []string `json:"examples,omitempty"`
}

const maxExamples = 5

// load asks all the time until its standard input ends: half of the workers over
// connections that they keep, half over new ones. Each line that it reads ends a
// phase, and prints what that was; so does the end.
func load(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	workers := flags.Int("workers", 4, "that ask at once")
	pause := flags.Duration("pause", 10*time.Millisecond, "of a worker, between two requests")
	connections := flags.String("connections", "both", "fresh: one for each request; kept; or both, half of the workers each")
	header := flags.String("header", "", "NAME:VALUE, of each request")
	timeout := flags.Duration("timeout", 5*time.Second, "of each request")
	flags.Parse(args)
	ctx, stop := context.WithCancel(ctx)
	defer stop()

	var (
		mu      sync.Mutex
		current = &phase{Outcomes: map[string]int{}, Served: map[string]int{}}
		asking  sync.WaitGroup
	)
	for i := range *workers {
		asking.Go(func() {
			client := &http.Client{Timeout: *timeout, Transport: &http.Transport{DisableKeepAlives: *connections == "fresh" || *connections == "both" && i%2 == 0}}
			for ; ctx.Err() == nil; time.Sleep(*pause) {
				outcome, answer, err := askForWork(client, flags.Arg(0), *header)
				mu.Lock()
				current.Outcomes[outcome]++
				switch {
				case outcome == "200":
					current.Served[answer.Served]++
					if !answer.Checked {
						current.Unchecked++
					}
				case len(current.Examples) < maxExamples:
					current.Examples = append(current.Examples, fmt.Sprintf("%s %s: %v", time.Now().Format(time.StampMilli), outcome, err))
				}
				mu.Unlock()
			}
		})
	}
	report := func() error {
		mu.Lock()
		defer mu.Unlock()
		ended := current
		current = &phase{Outcomes: map[string]int{}, Served: map[string]int{}}
		return json.NewEncoder(os.Stdout).Encode(ended)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if err := report(); err != nil {
			return err
		}
	}
	stop()
	asking.Wait()
	return report()
}

// askForWork makes one request, and returns its status or the symbol of its error.
func askForWork(client *http.Client, url, header string) (outcome string, answer worked, err error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "malformed", answer, err
	}
	if name, value, ok := strings.Cut(header, ":"); ok {
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		symbol, _, _ := strings.Cut(errno(err).Error(), ":")
		if strings.HasPrefix(symbol, "Get ") {
			symbol = "other"
		}
		return symbol, answer, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "cut", answer, err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Sprint(response.StatusCode), answer, fmt.Errorf("%s", body)
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return "garbled", answer, err
	}
	return "200", answer, nil
}

// held is what became of something long.
type held struct {
	Pieces int       `json:"pieces"`
	Last   time.Time `json:"last"`
	// Gap is the longest time between two pieces.
	Gap   time.Duration `json:"gap"`
	Ended string        `json:"ended"`
}

// hold reads a body or a WebSocket, or talks by gRPC, until that ends. It says "ready" once there is
// something to read, and what it saw at the end.
func hold(ctx context.Context, args []string) error {
	next, err := openStream(ctx, args[0])
	if err != nil {
		return errno(err)
	}
	seen := held{Last: time.Now()}
	for {
		err := next()
		if err != nil {
			seen.Ended = errno(err).Error()
			return json.NewEncoder(os.Stdout).Encode(seen)
		}
		now := time.Now()
		seen.Gap, seen.Last = max(seen.Gap, now.Sub(seen.Last)), now
		if seen.Pieces++; seen.Pieces == 1 {
			fmt.Println("ready")
		}
	}
}

func openStream(ctx context.Context, url string) (next func() error, err error) {
	if address, ok := strings.CutPrefix(url, "grpc://"); ok {
		say, err := talk(ctx, address)
		return func() error {
			time.Sleep(100 * time.Millisecond)
			return say(time.Now().String())
		}, err
	}
	if strings.HasPrefix(url, "ws:") {
		conn, _, err := websocket.Dial(ctx, url, nil)
		if err != nil {
			return nil, err
		}
		return func() error { _, _, err := conn.Read(ctx); return err }, nil
	}
	response, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s", response.Status)
	}
	lines := bufio.NewReader(response.Body)
	return func() error { _, err := lines.ReadString('\n'); return err }, nil
}
