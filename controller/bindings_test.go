package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/controller/push"
	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// stages are bindings, and those that they ask.
type stages struct {
	*bindings
	t                *testing.T
	acked            uint64 // by every node
	held             map[string]bool
	changed, settled int
	time             time.Time
	publication      uint64
	record           *written
}

// written is the record in memory.
type written struct {
	text   string
	writes int
	fail   error
}

func (w *written) read(context.Context) (string, error) { return w.text, w.fail }

func (w *written) write(_ context.Context, text string) error {
	if w.fail == nil {
		w.text, w.writes = text, w.writes+1
	}
	return w.fail
}

func newStages(t *testing.T) *stages { return stagesAfter(t, &written{}) }

// stagesAfter are those of a leader after the one that wrote a record.
func stagesAfter(t *testing.T, record *written) *stages {
	t.Helper()
	s := &stages{t: t, held: map[string]bool{}, time: time.Unix(1000, 0), record: record}
	s.bindings = newBindings(
		record, slog.New(slog.DiscardHandler),
		func(p uint64) bool { return p <= s.acked },
		func(waypoint types.NamespacedName, target string) bool { return s.held[waypoint.Name+" "+target] },
		func() { s.changed++ }, func() { s.settled++ })
	s.now = func() time.Time { return s.time }
	if err := s.takeOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// check takes bindings on.
func (s *stages) check() { s.bindings.check(s.t.Context()) }

// service is bound, or leaving, at the stage that it is to be at now.
func (s *stages) service(name string, changes ...func(*translate.Bound)) *translate.Bound {
	b := &translate.Bound{Kind: "Service", Namespace: "shop", Name: name, Target: name, Waypoint: types.NamespacedName{Namespace: "shop", Name: "waypoint"}, Ready: true}
	for _, change := range changes {
		change(b)
	}
	is := s.Standing(b.Of(), b.Waypoint)
	b.Waypoint, b.From, b.Stage, b.Leaving = is.Waypoint, is.From, is.Stage, is.Leaving
	return b
}

// publish what is bound; what is on its way out is added, as translate does it.
func (s *stages) publish(bound ...*translate.Bound) {
	labelled := map[string]bool{}
	for _, b := range bound {
		labelled[b.Name] = true
	}
	for _, name := range []string{"old", "fresh"} {
		left := s.service(name, func(b *translate.Bound) { b.Waypoint = types.NamespacedName{} })
		if left.Stage > 0 && !labelled[name] {
			bound = append(bound, left)
		}
	}
	s.publication++
	s.published(bound, s.publication)
}

func (s *stages) want(when string, b *translate.Bound, stage translate.Stage, inForce bool) {
	s.t.Helper()
	s.check()
	if got := s.Standing(b.Of(), b.Waypoint); got.Stage != stage {
		s.t.Errorf("%s: at stage %d, want %d", when, got.Stage, stage)
	}
	if got := s.isInForce(b); got != inForce {
		s.t.Errorf("%s: in force %v", when, got)
	}
}

func TestABindingComesStepByStep(t *testing.T) {
	s := newStages(t)
	old, fresh := s.service("old"), s.service("fresh")
	s.publish(s.service("old"))
	s.want("what is bound when the process begins", old, translate.Enforced, false)
	s.acked = 1
	s.want("acknowledged", old, translate.Enforced, true)

	s.publish(s.service("old"), s.service("fresh"))
	s.want("a new one", fresh, translate.Announced, false)
	s.acked = 2
	s.want("acknowledged by nodes, not by the waypoint", fresh, translate.Announced, false)
	s.held["waypoint fresh"], s.acked = true, 1
	s.want("acknowledged by the waypoint, not by nodes", fresh, translate.Announced, false)
	s.acked = 2
	s.want("acknowledged by both", fresh, translate.Led, false)
	if s.changed != 1 {
		t.Errorf("told %d times", s.changed)
	}
	s.acked = 100
	s.want("not published yet", fresh, translate.Led, false)
	s.acked = 2
	s.publish(s.service("old"), s.service("fresh"))
	s.publish(s.service("old"), s.service("fresh"))
	s.want("not acknowledged", fresh, translate.Led, false)
	s.acked = 3
	s.want("clients of every node come through it, and older connections end", fresh, translate.Led, false)
	s.time = s.time.Add(grace)
	s.want("they had their time", fresh, translate.Enforced, false)
	s.publish(s.service("old"), s.service("fresh"))
	s.want("nobody has heard that", fresh, translate.Enforced, false)
	s.acked = 5
	s.want("everybody has", fresh, translate.Enforced, true)
	if s.changed != 2 || s.settled != 2 {
		t.Errorf("told of %d changes, %d in force", s.changed, s.settled)
	}
}

func TestABindingGoesStepByStep(t *testing.T) {
	s := newStages(t)
	s.acked = 1
	s.publish(s.service("old"))
	old := s.service("old")
	s.want("bound", old, translate.Enforced, true)

	s.publish()
	s.want("the label is gone: others are let in", old, translate.Led, false)
	s.publish()
	s.want("not acknowledged", old, translate.Led, false)
	s.acked = 3
	s.want("every node lets others in: clients go straight", old, translate.Announced, false)
	s.publish()
	s.want("not acknowledged", old, translate.Announced, false)
	s.acked = 4
	s.want("no client comes through it, and older connections end", old, translate.Announced, false)
	s.time = s.time.Add(grace)
	s.check()
	if left := s.Standing(old.Of(), types.NamespacedName{}); left.Stage > 0 {
		t.Error("no client comes through it, and it does not go")
	}
	// Bound again while it was on its way out, it goes on from there.
	s = newStages(t)
	s.acked = 1
	s.publish(s.service("old"))
	s.publish()
	s.check()
	s.publish()
	s.publish(s.service("old"))
	s.want("bound again", old, translate.Led, false)
	s.acked = 3
	s.time = s.time.Add(grace)
	s.want("acknowledged", old, translate.Enforced, false)
}

// Nobody keeps a binding from being enforced, or one that has no waypoint from refusing.
func TestABindingDoesNotWaitForEver(t *testing.T) {
	unready := func(b *translate.Bound) { b.Ready = false }
	s := newStages(t)
	s.publish()
	fresh := s.service("fresh", unready)
	s.held["waypoint fresh"] = true
	s.publish(s.service("fresh", unready))
	s.acked = 2
	s.want("the waypoint is not ready", fresh, translate.Announced, false)
	s.time = s.time.Add(stageAfter)
	s.want("after a time", fresh, translate.Led, false)
	s.publish(s.service("fresh", unready))
	s.time = s.time.Add(stageAfter)
	s.want("a node does not answer", fresh, translate.Enforced, false)

	s = newStages(t)
	s.publish()
	missing := func(b *translate.Bound) { b.Problem, b.Ready = "there is no Gateway", false }
	s.publish(s.service("fresh", missing))
	s.want("no waypoint to wait for", fresh, translate.Led, false)
}

// waypoint has a Service want another one than usual; none if name is empty.
func waypoint(name string) func(*translate.Bound) {
	return func(b *translate.Bound) {
		if b.Waypoint.Name = name; name == "" {
			b.Waypoint = types.NamespacedName{}
		}
	}
}

// moving has a Service in force at one waypoint, and then wanted at another.
func moving(t *testing.T) *stages {
	s := newStages(t)
	s.acked = 1
	s.publish(s.service("old"))
	s.want("in force", s.service("old"), translate.Enforced, true)
	s.publish(s.service("old", waypoint("another")))
	return s
}

// standing tells how a Service stands, whatever its label wants.
func (s *stages) standing(when, want string, wanted string) {
	s.t.Helper()
	s.check()
	name := types.NamespacedName{Namespace: "shop", Name: wanted}
	if wanted == "" {
		name = types.NamespacedName{}
	}
	is := s.Standing(translate.Target{Kind: "Service", Namespace: "shop", Name: "old"}, name)
	got := fmt.Sprintf("%s %d from %s", is.Waypoint.Name, is.Stage, is.From.Name)
	if is.Leaving {
		got += ", leaving"
	}
	if got != want {
		s.t.Errorf("%s: %s, want %s", when, got, want)
	}
}

// From one waypoint to another clients go as others come: nobody before all have heard
// of it, and the other one knows what it is to stand before.
func TestABindingMovesStepByStep(t *testing.T) {
	s := moving(t)
	wanted := func() { s.publish(s.service("old", waypoint("another"))) }
	s.standing("the label names another", "another 1 from waypoint", "another")
	s.acked = 2
	s.standing("which does not know of it", "another 1 from waypoint", "another")
	s.held["another old"] = true
	s.standing("which does", "another 2 from waypoint", "another")
	wanted()
	s.acked = 3
	s.standing("acknowledged, and older connections end", "another 2 from waypoint", "another")
	s.time = s.time.Add(grace)
	s.standing("they had their time", "another 3 from ", "another")
	wanted()
	s.want("nobody has heard that", s.service("old", waypoint("another")), translate.Enforced, false)
	s.acked = 4
	s.want("everybody has", s.service("old", waypoint("another")), translate.Enforced, true)
	if s.isInForce(&translate.Bound{Kind: "Service", Namespace: "shop", Name: "old", Waypoint: types.NamespacedName{Namespace: "shop", Name: "waypoint"}}) {
		t.Error("the one before is in force still")
	}
}

// Who changes their mind while a binding moves loses nothing by it.
func TestABindingThatMovesIsWantedOtherwise(t *testing.T) {
	s := moving(t)
	s.standing("back", "waypoint 3 from ", "waypoint")
	s.standing("to a third one", "third 1 from waypoint", "third")
	s.standing("to none", "waypoint 3 from , leaving", "")
	s.publish()
	s.standing("it goes step by step", "waypoint 2 from , leaving", "")

	// Clients are led to the other one: that comes to its end first.
	isLed := func() *stages {
		s := moving(t)
		s.held["another old"], s.acked = true, 2
		s.standing("led", "another 2 from waypoint", "another")
		return s
	}
	for wanted, want := range map[string]string{"third": "another 2 from waypoint", "waypoint": "another 2 from waypoint", "": "another 2 from waypoint, leaving"} {
		s = isLed()
		s.publish(s.service("old", func(b *translate.Bound) {
			if b.Waypoint.Name = wanted; wanted == "" {
				b.Waypoint = types.NamespacedName{}
			}
		}))
		s.acked = 3
		s.standing("too late for "+wanted, want, wanted)
		s.time = s.time.Add(grace)
		s.check()
		if want := map[string]string{"third": "third 1 from another", "waypoint": "waypoint 1 from another", "": "another 3 from , leaving"}[wanted]; want != "" {
			s.standing("after it, "+wanted, want, wanted)
		}
	}

	// One that is on its way out is out first.
	s = newStages(t)
	s.acked = 9
	s.publish(s.service("old"))
	for range 3 {
		s.publish()
		s.check()
	}
	s.standing("older connections end", "waypoint 1 from , leaving", "another")
	s.time = s.time.Add(grace)
	s.check()
	s.standing("it is out", "another 1 from ", "another")
}

// A waypoint that is not there takes over as well: nobody gets through.
func TestABindingMovesToNothing(t *testing.T) {
	s := newStages(t)
	s.acked = 1
	s.publish(s.service("old"))
	s.check()
	missing := func(b *translate.Bound) {
		b.Waypoint.Name, b.Problem, b.Ready = "another", "there is no Gateway", false
	}
	s.publish(s.service("old", missing))
	s.standing("no waypoint to wait for", "another 2 from waypoint", "another")
}

// A leader that takes over goes on where the one before was, at whichever step that is, and
// whatever the label wants by now.
func TestTheNextLeaderGoesOn(t *testing.T) {
	const unbound = "in force, and the label is gone"
	for _, c := range []struct {
		at      string
		goes    func(*stages)
		wanted  string
		want    string
		further string // once everything that was published is acknowledged
	}{
		{"in force", func(*stages) {}, "waypoint", "waypoint 3 from ", "waypoint 3 from "},
		{"in force, and the label is another", func(*stages) {}, "another", "another 1 from waypoint", "another 2 from waypoint"},
		{unbound, func(*stages) {}, "", "waypoint 3 from , leaving", "waypoint 2 from , leaving"},
		{"announced", announced, "another", "another 1 from waypoint", "another 2 from waypoint"},
		{"announced, and back", announced, "waypoint", "waypoint 3 from ", "waypoint 3 from "},
		{"led", led, "another", "another 2 from waypoint", "another 3 from "},
		{"led, and back", led, "waypoint", "another 2 from waypoint", "waypoint 1 from another"},
		{"led, and the label is gone", led, "", "another 2 from waypoint, leaving", "another 3 from , leaving"},
		{"enforced", enforced, "another", "another 3 from ", "another 3 from "},
		{"leaving", leaving, "", "waypoint 2 from , leaving", "waypoint 1 from , leaving"},
		{"leaving, and back", leaving, "waypoint", "waypoint 2 from ", "waypoint 3 from "},
		{"leaving, led straight, and another", straight, "another", "waypoint 1 from , leaving", "another 1 from "},
		{"left", left, "", " 0 from ", " 0 from "},
		{"left, and back", left, "waypoint", "waypoint 1 from ", "waypoint 1 from "},
	} {
		t.Run(c.at, func(t *testing.T) {
			first := newStages(t)
			first.acked = 1
			first.publish(first.service("old"))
			first.check()
			c.goes(first)
			second := stagesAfter(t, first.record)
			second.standing("the next leader", c.want, c.wanted)
			second.publish(second.service("old", waypoint(c.wanted)))
			if c.at != unbound { // the first step of which waits for nobody
				second.standing("nothing is acknowledged", c.want, c.wanted)
			}
			second.acked, second.held["another old"], second.time = 9, true, second.time.Add(grace)
			second.standing("acknowledged", c.further, c.wanted)
		})
	}
}

// The ways to where the first leader ends.
func announced(s *stages) {
	s.publish(s.service("old", waypoint("another")))
	s.check()
}

func led(s *stages) {
	announced(s)
	s.held["another old"], s.acked = true, 2
	s.check()
	s.publish(s.service("old", waypoint("another")))
}

func enforced(s *stages) {
	led(s)
	s.acked, s.time = 3, s.time.Add(grace)
	s.check()
}

func leaving(s *stages) {
	s.publish()
	s.check()
}

// straight: no node leads clients through the waypoint any more, and older connections end.
func straight(s *stages) {
	leaving(s)
	s.publish()
	s.acked = 9
	s.check()
	s.publish()
	s.check()
}

func left(s *stages) {
	leaving(s)
	for range 2 {
		s.publish()
		s.acked, s.time = 9, s.time.Add(grace)
		s.check()
	}
}

// What is published was written down before: who cannot write stays where it is.
func TestNoBindingGoesOnBeforeThatIsWrittenDown(t *testing.T) {
	s := moving(t)
	s.held["another old"], s.acked = true, 2
	s.record.fail = errors.New("the API server is down")
	s.standing("it cannot be written down", "another 1 from waypoint", "another")
	s.record.fail = nil
	s.standing("it can", "another 2 from waypoint", "another")
	writes := s.record.writes
	s.standing("nothing is new", "another 2 from waypoint", "another")
	if s.record.writes != writes {
		t.Error("written without need")
	}
}

// What nothing can be known of may have been enforced.
func TestWhatIsNotWrittenDownIsEnforced(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":  "",
		"unknown":  "{",
		"no stage": `{"bindings":[{"kind":"Service","namespace":"shop","name":"old","waypoint":"shop/waypoint","stage":4}]}`,
		"stage 0":  `{"bindings":[{"kind":"Service","namespace":"shop","name":"old","waypoint":"shop/waypoint","stage":0}]}`,
		"no kind":  `{"bindings":[{"namespace":"shop","name":"old","waypoint":"shop/waypoint","stage":3}]}`,
		"no name":  `{"bindings":[{"kind":"Service","namespace":"shop","name":"old","waypoint":"waypoint","stage":3}]}`,
		"no list":  `{}`,
		"twice": `{"bindings":[{"kind":"Service","namespace":"shop","name":"old","waypoint":"shop/waypoint","stage":3},` +
			`{"kind":"Service","namespace":"shop","name":"old","waypoint":"shop/waypoint","stage":1}]}`,
		"null":      `null`,
		"no room":   `{"bindings":[],"partial":true}`,
		"nameless":  `{"bindings":[{"kind":"Service","namespace":"shop","waypoint":"shop/waypoint","stage":3}]}`,
		"half from": `{"bindings":[{"kind":"Service","namespace":"shop","name":"old","waypoint":"shop/waypoint","from":"x","stage":1}]}`,
	} {
		s := stagesAfter(t, &written{text: text})
		s.standing(name, "waypoint 3 from ", "waypoint")
		if s.record.writes > 0 {
			t.Errorf("%s: written before anything is known", name)
		}
		s.publish(s.service("old"))
		s.check()
		stagesAfter(t, s.record).standing(name+", and a leader after it", "another 1 from waypoint", "another")
	}
	s := stagesAfter(t, &written{text: `{"bindings":[]}`})
	s.standing("it is known that there is none", "waypoint 1 from ", "waypoint")
}

// What is written down is waited for: a leader that cannot read it would enforce at once what is on its way.
func TestTakingOverWaitsForTheRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := moving(t)
		first.check()
		s := newStages(t)
		s.bindings.record = first.record
		first.record.fail = errors.New("the API server is down")
		if err := s.takeOver(t.Context()); !errors.Is(err, first.record.fail) {
			t.Errorf("taken over without the record: %v", err)
		}
		p := &parts{bindings: s.bindings, logger: slog.New(slog.DiscardHandler)}
		over := make(chan error, 1)
		go func() { over <- p.takeBindingsOver(t.Context()) }()
		time.Sleep(10 * bindingsRetry)
		select {
		case err := <-over:
			t.Errorf("taken over without the record: %v", err)
		default:
		}
		first.record.fail = nil
		if err := <-over; err != nil {
			t.Error(err)
		}
		s.standing("the next leader", "another 1 from waypoint", "another")
	})
}

// Who does not lead takes nothing on, and what it published counts for nothing once it does.
func TestOnlyTheLeaderTakesBindingsOn(t *testing.T) {
	record := &written{text: `{"bindings":[]}`}
	b := newBindings(record, slog.New(slog.DiscardHandler), func(uint64) bool { return true }, func(types.NamespacedName, string) bool { return true }, func() {}, func() {})
	one := &translate.Bound{Kind: "Service", Namespace: "shop", Name: "old", Waypoint: types.NamespacedName{Namespace: "shop", Name: "waypoint"}, Ready: true}
	early := b.looks()
	one.Stage = b.Standing(one.Of(), one.Waypoint).Stage
	b.check(t.Context())
	if err := b.takeOver(t.Context()); err != nil {
		t.Fatal(err)
	}
	early([]*translate.Bound{one}, 1)
	if got := b.Standing(one.Of(), one.Waypoint).Stage; got != translate.Announced || record.writes > 0 {
		t.Errorf("at stage %d, written %d times", got, record.writes)
	}
}

// What is said of a waypoint is so: it has pods that are ready, and all of them work with
// what was published last; but for a moment, in which they get it.
func TestWhetherAWaypointIsReady(t *testing.T) {
	s := newStages(t)
	s.acked = 9
	unready := func(b *translate.Bound) { b.Ready = false }
	want := func(when, want string, settled int) {
		t.Helper()
		s.checkReady()
		if got := s.readiness(s.service("old")); got != want || s.settled != settled {
			t.Errorf("%s: %q, told %d times, want %q, %d", when, got, s.settled, want, settled)
		}
	}
	s.publish(s.service("old"))
	want("nobody knows yet", "", 0)
	s.time = s.time.Add(ackPatience)
	want("it had its time", binding.NotAcknowledged, 1)
	s.held["waypoint old"] = true
	want("nothing was heard", binding.NotAcknowledged, 1)
	s.answered()
	s.check() // in force
	want("heard", binding.Ready, 3)

	s.publish(s.service("old"))
	s.held["waypoint old"] = false
	want("something new is on its way", binding.Ready, 3)
	s.held["waypoint old"] = true
	want("there it is", binding.Ready, 3)
	s.held["waypoint old"] = false
	s.publish(s.service("old"))
	want("on its way again", binding.Ready, 3)
	s.time = s.time.Add(ackPatience)
	want("for too long", binding.NotAcknowledged, 4)
	s.publish(s.service("old", unready))
	want("without pods", binding.NotReady, 5)
	s.publish(s.service("old", func(b *translate.Bound) { b.Reason, b.Problem = binding.NotFound, "there is no Gateway" }))
	want("without a Gateway", binding.NotFound, 6)
}

// A stream tells that a node answered while it holds its own lock, which whoever asks
// what has been acknowledged takes: the two may not meet.
func TestTellingOfAnswersNeverAsks(t *testing.T) {
	b := newBindings(&written{}, slog.New(slog.DiscardHandler), func(uint64) bool { t.Error("asked"); return false }, func(types.NamespacedName, string) bool { t.Error("asked"); return false }, func() {}, func() {})
	b.published(nil, 1)
	b.published([]*translate.Bound{{Kind: "Service", Namespace: "shop", Name: "a", Stage: translate.Announced}}, 2)
	for range 3 {
		b.answered()
	}
}

// Who is away has heard nothing, and when nobody is connected nobody has.
func TestHeardByAll(t *testing.T) {
	n1, n2 := push.ProxyKey{Node: "n1", Pod: "a"}, push.ProxyKey{Node: "n2", Pod: "b"}
	both := []string{"n1", "n2"}
	for name, c := range map[string]struct {
		running           []string
		connected, behind []push.ProxyKey
		want              bool
	}{
		"all":                   {both, []push.ProxyKey{n1, n2}, nil, true},
		"one is behind":         {both, []push.ProxyKey{n1, n2}, []push.ProxyKey{n2}, false},
		"one is away":           {both, []push.ProxyKey{n1}, nil, false},
		"nobody is connected":   {both, nil, nil, false},
		"one that is not known": {[]string{"n1"}, []push.ProxyKey{n1, n2}, nil, true},
		"no nodes":              {nil, nil, nil, true},
	} {
		if got := heardByAll(c.running, c.connected, c.behind); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Whose term is over writes nothing any more: another leader may be further.
func TestNoBindingGoesOnAfterTheTerm(t *testing.T) {
	s := moving(t)
	s.held["another old"], s.acked = true, 2
	s.stop()
	writes := s.record.writes
	s.standing("another process leads", "another 1 from waypoint", "another")
	if s.record.writes != writes {
		t.Error("written after the term")
	}
}
