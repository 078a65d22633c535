package h2spec

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// serverCases is how many the suite has: none may get lost on the way here.
const serverCases = 146

// timeout is how long the suite waits for what does not come.
const timeout = 4 * time.Second

// together is how many cases run at a time: most of them wait.
const together = 32

// TestServer runs every case of the suite for servers, those that cannot pass with
// GET and POST once more as CONNECT.
func TestServer(t *testing.T) {
	plain := settings(serve(t, false))
	connect := settings(serve(t, true))
	var trials []trial
	n := 0
	for name, c := range cases {
		n++
		why, again := withGet[name]
		if !again {
			why = unfit[name]
		}
		trials = append(trials, trial{name, why, func() error { return run(c, sized(plain, name)) }})
		if again {
			trials = append(trials, trial{name + " as CONNECT", unfit[name], func() error { return run(c, connect) }})
		}
	}
	if n != serverCases {
		t.Errorf("%d cases, want %d", n, serverCases)
	}
	judge(t, trials)
	mustBeCases(t, trials, withGet)
	mustBeCases(t, trials, unfit)
}

// trial is a case that is run once.
type trial struct {
	name string
	why  string // it cannot pass; empty if it can
	run  func() error
}

// judge runs all trials, then compares each one's result to what is expected.
func judge(t *testing.T, trials []trial) {
	t.Helper()
	results := make([]error, len(trials))
	slots := make(chan struct{}, together)
	var running sync.WaitGroup
	for i, c := range trials {
		running.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] = c.run()
		})
	}
	running.Wait()
	for i, c := range trials {
		t.Run(c.name, func(t *testing.T) {
			switch err := results[i]; {
			case err != nil && c.why == "":
				t.Error(err)
			case err == nil && c.why != "":
				t.Errorf("passes, but is listed: %s", c.why)
			}
		})
	}
}

// mustBeCases fails for what is listed and does not exist.
func mustBeCases(t *testing.T, trials []trial, listed map[string]string) {
	t.Helper()
	for name := range listed {
		if !slices.ContainsFunc(trials, func(c trial) bool { return c.name == name }) {
			t.Errorf("%s is listed and no case", name)
		}
	}
}

// sized makes the headers of a case as long as it takes to break our limit.
func sized(settings config.Config, name string) config.Config {
	if slices.Contains(longHeaders, name) {
		settings.MaxHeaderLen = 300 << 10
	}
	return settings
}

func run(c *spec.TestCase, settings config.Config) error {
	conn, err := spec.Dial(&settings)
	if err != nil {
		return err
	}
	defer conn.Close()
	return c.Run(&settings, conn)
}

func settings(addr string, port int) config.Config {
	return config.Config{
		Host: addr, Port: port, Path: "/", Timeout: timeout, MaxHeaderLen: 4000,
		Strict: true, TLS: true, Insecure: true,
	}
}

// cases are those of the suite, by the names that it gives them.
func cases(yield func(string, *spec.TestCase) bool) {
	for _, root := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		if !casesOf(root, yield) {
			return
		}
	}
}

func casesOf(g *spec.TestGroup, yield func(string, *spec.TestCase) bool) bool {
	for i, c := range slices.Concat(g.Tests, g.StrictTests) {
		if !yield(fmt.Sprintf("%s/%d", g.ID(), i+1), c) {
			return false
		}
	}
	for _, sub := range g.Groups {
		if !casesOf(sub, yield) {
			return false
		}
	}
	return true
}
