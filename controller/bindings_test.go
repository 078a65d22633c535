package main

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/controller/push"
	"github.com/ambit-mesh/ambit/controller/translate"
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
}

func newStages(t *testing.T) *stages {
	s := &stages{t: t, held: map[string]bool{}, time: time.Unix(1000, 0)}
	s.bindings = newBindings(
		func(p uint64) bool { return p <= s.acked },
		func(waypoint types.NamespacedName, target string) bool { return s.held[waypoint.Name+" "+target] },
		func() { s.changed++ }, func() { s.settled++ })
	s.now = func() time.Time { return s.time }
	return s
}

// service is bound, or leaving, at the stage that it is to be at now.
func (s *stages) service(name string, changes ...func(*translate.Bound)) *translate.Bound {
	b := &translate.Bound{Kind: "Service", Namespace: "shop", Name: name, Target: name, Waypoint: types.NamespacedName{Namespace: "shop", Name: "waypoint"}, Ready: true}
	for _, change := range changes {
		change(b)
	}
	b.Stage = s.Stage(b.Binder())
	return b
}

// publish what is bound; what is on its way out is added, as translate does it.
func (s *stages) publish(bound ...*translate.Bound) {
	labelled := map[string]bool{}
	for _, b := range bound {
		labelled[b.Name] = true
	}
	for _, name := range []string{"old", "fresh"} {
		if binder, stage, ok := s.Leaving("Service", "shop", name); ok && !labelled[name] {
			bound = append(bound, &translate.Bound{Kind: "Service", Namespace: "shop", Name: name, Target: name, Waypoint: binder.Waypoint, Stage: stage, Leaving: true})
		}
	}
	s.publication++
	s.published(bound, s.publication)
}

func (s *stages) want(when string, b *translate.Bound, stage translate.Stage, inForce bool) {
	s.t.Helper()
	s.check()
	if got := s.Stage(b.Binder()); got != stage {
		s.t.Errorf("%s: at stage %d, want %d", when, got, stage)
	}
	if got := s.isInForce(b.Binder()); got != inForce {
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
	if _, _, ok := s.Leaving("Service", "shop", "old"); ok {
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

// From one waypoint to another nothing is open in between.
func TestABindingIsKeptWhenTheWaypointChanges(t *testing.T) {
	s := newStages(t)
	s.acked = 9
	s.publish(s.service("old"))
	s.check()
	another := func(b *translate.Bound) { b.Waypoint.Name = "another" }
	s.publish(s.service("old", another))
	s.want("another waypoint", s.service("old", another), translate.Enforced, true)
	if len(s.states) != 1 || len(s.byTarget) != 1 {
		t.Errorf("kept: %v, %v", s.states, s.byTarget)
	}
}

// A stream tells that a node answered while it holds its own lock, which whoever asks
// what has been acknowledged takes: the two may not meet.
func TestTellingOfAnswersNeverAsks(t *testing.T) {
	b := newBindings(func(uint64) bool { t.Error("asked"); return false }, func(types.NamespacedName, string) bool { t.Error("asked"); return false }, func() {}, func() {})
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
