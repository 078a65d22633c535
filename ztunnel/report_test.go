package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ambit-mesh/ambit/api/report"
)

// controller takes reports and notes them in words.
type controller struct {
	report.UnimplementedReportServiceServer
	heard   chan string
	streams chan grpc.BidiStreamingServer[report.NodeReport, report.ControllerReply]
	hangUp  chan struct{}
}

func (c *controller) Report(stream grpc.BidiStreamingServer[report.NodeReport, report.ControllerReply]) error {
	c.streams <- stream
	ended := make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			c.heard <- words(r)
		}
	}()
	select {
	case err := <-ended:
		return err
	case <-c.hangUp:
		return errors.New("hung up")
	}
}

func words(r *report.NodeReport) string {
	switch {
	case r.GetHello() != nil:
		return "hello " + r.GetHello().GetNode()
	case r.GetSnapshotSent() != nil:
		return "that is all"
	case r.GetHeartbeat() != nil:
		return "heartbeat " + strings.Join(r.GetHeartbeat().GetProblems(), "; ")
	case r.GetWorkload().GetRemoved():
		return r.GetWorkload().GetUid() + " removed"
	}
	return r.GetWorkload().GetUid() + " " + r.GetWorkload().GetState().String()
}

// observing is what a node observes, as a test says.
type observing struct {
	whole, changed chan struct{}

	mu     sync.Mutex
	states map[string]report.CaptureState
}

func (o *observing) set(uid string, state report.CaptureState) {
	o.mu.Lock()
	o.states[uid] = state
	if state == report.CaptureState_UNKNOWN {
		delete(o.states, uid)
	}
	o.mu.Unlock()
	o.changed <- struct{}{}
}

func (o *observing) Whole() <-chan struct{}   { return o.whole }
func (o *observing) Changed() <-chan struct{} { return o.changed }
func (o *observing) Refresh()                 {}
func (o *observing) Roots() []string          { return nil }
func (o *observing) Problems() []string       { return []string{"BPFFSMissing: mount it"} }

func (o *observing) States() []*report.WorkloadState {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []*report.WorkloadState
	for uid, state := range o.states {
		all = append(all, &report.WorkloadState{Uid: uid, State: state})
	}
	return all
}

func startReporting(t *testing.T, c *controller, o *observing, released func(string, time.Time)) {
	t.Helper()
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	report.RegisterReportServiceServer(server, c)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///controller", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := &reporter{hello: &report.Hello{Node: "n1"}, conn: conn, observed: o, release: released, logger: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (c *controller) hears(t *testing.T, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-c.heard:
			if got != w {
				t.Fatalf("the controller hears %q, want %q", got, w)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("the controller does not hear %q", w)
		}
	}
}

func TestReportIsWholeThenWhatChanges(t *testing.T) {
	c := &controller{heard: make(chan string, 100), streams: make(chan grpc.BidiStreamingServer[report.NodeReport, report.ControllerReply], 10), hangUp: make(chan struct{})}
	o := &observing{whole: make(chan struct{}), changed: make(chan struct{}, 1), states: map[string]report.CaptureState{}}
	released := make(chan string, 1)
	asked := time.Now()
	startReporting(t, c, o, func(uid string, since time.Time) {
		if !since.Equal(asked) {
			t.Errorf("released as of %s, want %s", since, asked)
		}
		released <- uid
	})
	stream := <-c.streams
	const heartbeat = "heartbeat BPFFSMissing: mount it"
	c.hears(t, "hello n1", heartbeat)
	o.states["cart"] = report.CaptureState_CAPTURED // nobody looks before the state is whole
	close(o.whole)
	c.hears(t, "cart CAPTURED", "that is all")
	o.set("web", report.CaptureState_PENDING)
	c.hears(t, "web PENDING")
	o.set("cart", report.CaptureState_WITHDRAWING)
	c.hears(t, "cart WITHDRAWING")
	if err := stream.Send(&report.ControllerReply{Kind: &report.ControllerReply_Release{Release: &report.Release{Uid: "cart", WithdrawingSince: timestamppb.New(asked)}}}); err != nil {
		t.Fatal(err)
	}
	if uid := <-released; uid != "cart" {
		t.Errorf("released %s", uid)
	}
	o.set("web", report.CaptureState_UNKNOWN)
	c.hears(t, "web removed")

	// A new stream is told everything again.
	c.hangUp <- struct{}{}
	c.hears(t, "hello n1")
	rest := map[string]bool{}
	for range 3 {
		select {
		case got := <-c.heard:
			rest[got] = true
		case <-time.After(10 * time.Second):
			t.Fatalf("after the new stream's hello only %v", rest)
		}
	}
	if !rest["cart WITHDRAWING"] || !rest["that is all"] || !rest[heartbeat] {
		t.Errorf("the new stream hears %v", rest)
	}
}
