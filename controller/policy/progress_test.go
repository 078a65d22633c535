package policy

import (
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/controller/resource"
	"github.com/ambit-mesh/ambit/controller/translate"
)

// fleet is connected proxies: node and pod, and what each holds.
type fleet map[[2]string]holdings

type holdings struct {
	has     []string // type and name
	refused map[string]string
	trouble map[string]string
}

func (f fleet) Each(visit func(node string, has func(typeURL, name string) (bool, string))) {
	for key, h := range f {
		visit(key[0], func(typeURL, name string) (bool, string) {
			return slices.Contains(h.has, typeURL+" "+name), h.refused[typeURL+" "+name]
		})
	}
}

// Waypoint: its pods are on the node of its name.
func (f fleet) Waypoint(waypoint, typeURL, name string) bool {
	any := false
	for key, h := range f {
		if key[0] == waypoint {
			if any = slices.Contains(h.has, typeURL+" "+name); !any {
				return false
			}
		}
	}
	return any
}

func (f fleet) Trouble(waypoint, typeURL, name string) string {
	for key, h := range f {
		if words := h.trouble[typeURL+" "+name]; key[0] == waypoint && words != "" {
			return words
		}
	}
	return ""
}

const (
	theDeny = resource.Authorization + " shop/deny"
	webPod  = resource.Address + " web"
	dbPod   = resource.Address + " db"
)

func deny() *translate.Policy {
	return &translate.Policy{
		Kind: translate.AuthorizationPolicy, Namespace: "shop", Name: "deny", UID: "1", Generation: 1, Version: "abc", Workloads: 2,
		Resources: []translate.Ref{{Type: resource.Authorization, Name: "shop/deny"}},
		Nodes:     map[string][]string{"n1": {"web"}, "n2": {"db"}},
	}
}

func TestMeasure(t *testing.T) {
	for name, test := range map[string]struct {
		fleet   fleet
		inForce int
		waiting []string
		refusal string
	}{
		"no proxy at all":    {fleet{}, 0, []string{"n1", "n2"}, ""},
		"everywhere":         {fleet{{"n1", "a"}: {has: []string{theDeny, webPod}}, {"n2", "b"}: {has: []string{theDeny, dbPod}}}, 2, nil, ""},
		"not the policy":     {fleet{{"n1", "a"}: {has: []string{webPod}}, {"n2", "b"}: {has: []string{theDeny, dbPod}}}, 1, []string{"n1"}, ""},
		"not the workload":   {fleet{{"n1", "a"}: {has: []string{theDeny}}, {"n2", "b"}: {has: []string{theDeny, dbPod}}}, 1, []string{"n1"}, ""},
		"another's workload": {fleet{{"n1", "a"}: {has: []string{theDeny, dbPod}}, {"n2", "b"}: {has: []string{theDeny, dbPod}}}, 1, []string{"n1"}, ""},
		"one proxy of two": {fleet{{"n1", "a"}: {has: []string{theDeny, webPod}}, {"n1", "new"}: {},
			{"n2", "b"}: {has: []string{theDeny, dbPod}}}, 1, []string{"n1"}, ""},
		"refused": {fleet{{"n1", "a"}: {refused: map[string]string{theDeny: "no"}}, {"n2", "b"}: {has: []string{theDeny, dbPod}}},
			1, []string{"n1"}, "no"},
		"nodes that need not": {fleet{{"n3", "c"}: {}, {"n1", "a"}: {has: []string{theDeny, webPod}}, {"n2", "b"}: {has: []string{theDeny, dbPod}}}, 2, nil, ""},
	} {
		p := deny()
		on := make(memory).measure([]*translate.Policy{p}, test.fleet, time.Now())[p]
		if on.required != 2 || on.inForce != test.inForce || !slices.Equal(on.waiting, test.waiting) || on.refusals["n1"] != test.refusal {
			t.Errorf("%s: %+v", name, on)
		}
	}
}

// Where pods run that ought to be captured and are not, a policy is not in force, whatever the node has of it.
func TestWhereNobodyCapturesNothingIsInForce(t *testing.T) {
	all := fleet{{"n1", "a"}: {has: []string{theDeny, webPod}}, {"n2", "b"}: {has: []string{theDeny, dbPod}}}
	p := deny()
	var ever time.Time
	p.Uncaptured = map[string][]time.Time{"n2": {ever}, "n3": {ever, ever}}
	on := memory{}.measure([]*translate.Policy{p}, all, time.Now())[p]
	if on.required != 3 || on.inForce != 1 || !slices.Equal(on.waiting, []string{"n2", "n3"}) {
		t.Errorf("%+v", on)
	}
	if c := inForce(p, on); c.Reason != reasonNotCaptured || !strings.Contains(c.Message, "on node n2 1 pods") || !strings.Contains(c.Message, "on node n3 2 pods") {
		t.Errorf("%+v", c)
	}
}

// What is enrolled while it runs is not captured at once: its policies are not in force meanwhile, and that is said to be on its way
// for as long as it may take, and not any longer.
func TestWhatWasJustEnrolledIsBeingCaptured(t *testing.T) {
	all := fleet{{"n1", "a"}: {has: []string{theDeny, webPod}}, {"n2", "b"}: {has: []string{theDeny, dbPod}}}
	start := time.Now()
	early, later := start, start.Add(3*time.Second)
	for _, c := range []struct {
		after      time.Duration
		uncaptured map[string][]time.Time
		reason     string
		next       time.Time // when to look again
	}{
		{0, map[string][]time.Time{"n2": {early}}, reasonPending, early.Add(captureGrace)},
		{captureGrace - 1, map[string][]time.Time{"n2": {early}}, reasonPending, early.Add(captureGrace)},
		{captureGrace - 1, map[string][]time.Time{"n2": {later, early, later}, "n3": {later}}, reasonPending, early.Add(captureGrace)},
		{captureGrace, map[string][]time.Time{"n2": {early}}, reasonNotCaptured, time.Time{}},
		{captureGrace, map[string][]time.Time{"n2": {later}, "n3": {early}}, reasonNotCaptured, later.Add(captureGrace)},
		{0, map[string][]time.Time{"n2": {early, {}}}, reasonNotCaptured, early.Add(captureGrace)},
		{time.Hour, map[string][]time.Time{"n2": {early}, "n1": {later}}, reasonNotCaptured, time.Time{}},
		{0, nil, reasonInForce, time.Time{}},
	} {
		p := deny()
		p.Uncaptured = c.uncaptured
		on := memory{}.measure([]*translate.Policy{p}, all, start.Add(c.after))[p]
		got := inForce(p, on)
		if got.Reason != c.reason || !on.nextLate.Equal(c.next) {
			t.Errorf("after %s, %v: %s, and again at %s: %s", c.after, c.uncaptured, got.Reason, on.nextLate, got.Message)
		}
		if whole := len(c.uncaptured) == 0; (got.Status == metav1.ConditionTrue) != whole || (on.inForce == on.required) != whole {
			t.Errorf("after %s, %v: %s, %+v", c.after, c.uncaptured, got.Status, on)
		}
		for node, pods := range c.uncaptured {
			if n := on.capturing[node] + on.late[node]; n != len(pods) {
				t.Errorf("after %s, %v: of node %s %d pods are told", c.after, c.uncaptured, node, n)
			}
		}
	}
}

// A proxy that connects anew takes nothing out of force, one that stays away
// does; a new version starts from nothing, and so does a refusal.
func TestGrace(t *testing.T) {
	all := fleet{{"n1", "a"}: {has: []string{theDeny, webPod}}, {"n2", "b"}: {has: []string{theDeny, dbPod}}}
	start := time.Now()
	m := make(memory)
	measured := func(p *translate.Policy, f fleet, after time.Duration) int {
		return m.measure([]*translate.Policy{p}, f, start.Add(after))[p].inForce
	}
	if got := measured(deny(), all, 0); got != 2 {
		t.Fatalf("in force on %d", got)
	}
	if got := measured(deny(), fleet{}, grace-1); got != 2 {
		t.Errorf("within the grace it is in force on %d", got)
	}
	if got := measured(deny(), fleet{}, grace); got != 0 {
		t.Errorf("after the grace it is in force on %d", got)
	}
	measured(deny(), all, grace+1)
	refusing := fleet{{"n1", "a"}: {refused: map[string]string{theDeny: "no"}}}
	if got := measured(deny(), refusing, grace+2); got != 1 {
		t.Errorf("refused by one, it is in force on %d", got)
	}
	changed := deny()
	changed.Version = "def"
	if got := measured(changed, fleet{}, grace+3); got != 0 {
		t.Errorf("a new version is in force on %d", got)
	}
	if len(m) != 0 {
		t.Errorf("%d old versions are remembered", len(m))
	}
}

// A RequestAuthentication is in force where waypoints have it.
func TestMeasureAtWaypoints(t *testing.T) {
	const tokens = resource.RequestAuthentication + " shop/tokens"
	for name, test := range map[string]struct {
		fleet   fleet
		inForce int
		waiting []string
		reason  string
	}{
		"no waypoint's pod": {fleet{}, 0, []string{"waypoint shop/a", "waypoint shop/b"}, reasonPending},
		"one of two":        {fleet{{"shop/a", "1"}: {has: []string{tokens}}, {"shop/b", "1"}: {}}, 1, []string{"waypoint shop/b"}, reasonPending},
		"one pod of two":    {fleet{{"shop/a", "1"}: {has: []string{tokens}}, {"shop/a", "2"}: {}, {"shop/b", "1"}: {has: []string{tokens}}}, 1, []string{"waypoint shop/a"}, reasonPending},
		"one pod without keys": {fleet{{"shop/a", "1"}: {has: []string{tokens}}, {"shop/a", "2"}: {has: []string{tokens}, trouble: map[string]string{tokens: "keys at http://x: refused"}},
			{"shop/b", "1"}: {has: []string{tokens}}}, 1, []string{"waypoint shop/a"}, reasonKeysMissing},
		"both": {fleet{{"shop/a", "1"}: {has: []string{tokens}}, {"shop/b", "1"}: {has: []string{tokens}}}, 2, nil, reasonInForce},
	} {
		p := &translate.Policy{
			Kind: translate.RequestAuthentication, Namespace: "shop", Name: "tokens", Version: "abc",
			AtWaypoints: []translate.Ref{{Type: resource.RequestAuthentication, Name: "shop/tokens"}}, Waypoints: []string{"shop/a", "shop/b"},
		}
		on := memory{}.measure([]*translate.Policy{p}, test.fleet, time.Now())[p]
		if on.required != 2 || on.inForce != test.inForce || !slices.Equal(on.waiting, test.waiting) {
			t.Errorf("%s: %+v", name, on)
		}
		if c := inForce(p, on); c.Reason != test.reason || !strings.Contains(c.Message, "of 2 waypoints") {
			t.Errorf("%s: %s: %s", name, c.Reason, c.Message)
		} else if says := "waypoint shop/a refuses tokens: keys at http://x: refused"; (c.Reason == reasonKeysMissing) != strings.Contains(c.Message, says) {
			t.Errorf("%s: %s", name, c.Message)
		}
	}
}
