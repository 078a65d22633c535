package policy

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/controller/watch"
)

// server keeps one policy of each kind, as an API server does: versions,
// conflicts, a status of its own.
type server struct {
	mu        sync.Mutex
	version   int
	deny      *v1alpha1.AuthorizationPolicy
	strict    *v1alpha1.PeerAuthentication
	out       *v1alpha1.EgressPolicy
	seen      *v1alpha1.AuthorizationPolicy // what informers still see, if not nil
	writes    []string
	conflicts int
}

func newServer() *server {
	o := func() metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "shop", Name: "deny", UID: "1", Generation: 1, ResourceVersion: "1"}
	}
	return &server{
		version: 1,
		deny:    &v1alpha1.AuthorizationPolicy{ObjectMeta: o()},
		strict:  &v1alpha1.PeerAuthentication{ObjectMeta: o()},
		out:     &v1alpha1.EgressPolicy{ObjectMeta: o()},
	}
}

// Policies as informers have them.
func (s *server) Policies() (watch.PolicyObjects, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	deny := s.deny
	if s.seen != nil {
		deny = s.seen
	}
	return watch.PolicyObjects{
		AuthorizationPolicies: []*v1alpha1.AuthorizationPolicy{deny.DeepCopy()},
		PeerAuthentications:   []*v1alpha1.PeerAuthentication{s.strict.DeepCopy()},
		EgressPolicies:        []*v1alpha1.EgressPolicy{s.out.DeepCopy()},
	}, nil
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	plural := strings.Split(strings.TrimPrefix(r.URL.Path, "/apis/ambit.mesh/v1alpha1/namespaces/shop/"), "/")[0]
	stored := map[string]object{"authorizationpolicies": s.deny, "peerauthentications": s.strict, "egresspolicies": s.out}[plural]
	if stored == nil || r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, "/deny/status") {
		http.Error(w, "not served: "+r.Method+" "+r.URL.Path, http.StatusNotFound)
		return
	}
	var body struct {
		Metadata metav1.ObjectMeta     `json:"metadata"`
		Status   v1alpha1.PolicyStatus `json:"status"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if body.Metadata.ResourceVersion != stored.GetResourceVersion() {
		s.conflicts++
		w.WriteHeader(http.StatusConflict)
		json.NewEncoder(w).Encode(metav1.Status{Status: metav1.StatusFailure, Code: http.StatusConflict, Reason: metav1.StatusReasonConflict})
		return
	}
	s.storeLocked(stored, body.Status)
	s.writes = append(s.writes, plural+" "+body.Status.InForce)
	json.NewEncoder(w).Encode(stored)
}

func (s *server) storeLocked(o object, status v1alpha1.PolicyStatus) {
	s.version++
	o.SetResourceVersion(strconv.Itoa(s.version))
	*o.PolicyStatus() = status
}

func (s *server) do(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *server) inForce() (inForce string) {
	s.do(func() { inForce = s.deny.Status.InForce })
	return inForce
}

// proxies can be changed while they are looked at.
type proxies struct {
	mu    sync.Mutex
	fleet fleet
}

func (p *proxies) Each(visit func(node string, has func(typeURL, name string) (bool, string))) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fleet.Each(visit)
}

func (p *proxies) Waypoint(waypoint, typeURL, name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fleet.Waypoint(waypoint, typeURL, name)
}

func (p *proxies) Trouble(waypoint, typeURL, name string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fleet.Trouble(waypoint, typeURL, name)
}

// lead runs a keeper against s until the test ends.
func lead(t *testing.T, s *server, p *proxies) *Keeper {
	t.Helper()
	listener := httptest.NewServer(s)
	t.Cleanup(listener.Close)
	return leadBy(t, s, p, &rest.Config{Host: listener.URL})
}

// leadBy writes by way of an API server that is configured.
func leadBy(t *testing.T, s *server, p *proxies, config *rest.Config) *Keeper {
	t.Helper()
	client, err := NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	k := New(Config{Client: client, Objects: s, Proxies: p, Logger: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { k.RunLeader(ctx) })
	t.Cleanup(func() { stop(); running.Wait() })
	return k
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// From a publication to the status of every kind; and nothing is written that
// is written already, although informers are late.
func TestStatusIsKept(t *testing.T) {
	s, p := newServer(), &proxies{fleet: fleet{}}
	k := lead(t, s, p)
	strict, out := deny(), deny()
	strict.Kind, out.Kind = translate.PeerAuthentication, translate.EgressPolicy
	s.do(func() { s.seen = s.deny.DeepCopy() })
	k.Published([]*translate.Policy{deny(), strict, out})
	await(t, "all three are written", func() (ok bool) {
		s.do(func() {
			ok = s.deny.Status.InForce == "0/2" && s.strict.Status.InForce == "0/2" && s.out.Status.InForce == "0/2"
		})
		return ok
	})
	k.Changed()

	p.mu.Lock()
	p.fleet = fleet{{"n1", "a"}: {has: []string{theDeny, webPod}}, {"n2", "b"}: {has: []string{theDeny, dbPod}}}
	p.mu.Unlock()
	for range 1000 { // a storm of acknowledgements
		k.Changed()
	}
	await(t, "all three are in force everywhere", func() (ok bool) {
		s.do(func() {
			ok = s.deny.Status.InForce == "2/2" && s.strict.Status.InForce == "2/2" && s.out.Status.InForce == "2/2"
		})
		return ok
	})
	s.do(func() {
		if s.conflicts > 0 {
			t.Errorf("%d writes were decided on what the keeper itself had replaced", s.conflicts)
		}
		if len(s.writes) > 6 {
			t.Errorf("%d writes: %v", len(s.writes), s.writes)
		}
		if c := meta.FindStatusCondition(s.deny.Status.Conditions, "InForce"); c == nil || c.Status != metav1.ConditionTrue || c.ObservedGeneration != 1 {
			t.Errorf("the condition is %+v", c)
		}
		s.writes = nil
	})
	k.Changed()
	time.Sleep(settle + 100*time.Millisecond)
	s.do(func() {
		if len(s.writes) > 0 {
			t.Errorf("written although nothing changed: %v", s.writes)
		}
	})
}

// What somebody else wrote in the meantime is not overwritten: the keeper tries
// again on top of it.
func TestConflictsAreTriedAgain(t *testing.T) {
	s, p := newServer(), &proxies{fleet: fleet{}}
	foreign := metav1.Condition{Type: "example.com/Audited", Status: metav1.ConditionTrue, Reason: "Yes", LastTransitionTime: noon}
	s.seen = s.deny.DeepCopy()
	s.storeLocked(s.deny, v1alpha1.PolicyStatus{Conditions: []metav1.Condition{foreign}})
	k := lead(t, s, p)
	k.Published([]*translate.Policy{deny()})
	await(t, "a write is refused", func() (ok bool) { s.do(func() { ok = s.conflicts > 0 }); return ok })
	s.do(func() { s.seen = nil })
	await(t, "it is written on top", func() bool { return s.inForce() == "0/2" })
	s.do(func() {
		if c := meta.FindStatusCondition(s.deny.Status.Conditions, foreign.Type); c == nil {
			t.Error("what another wrote is gone")
		}
	})
}

// A new leader, to which no proxy has connected yet, takes nothing out of force
// that the one before it saw in force.
func TestTakingOver(t *testing.T) {
	s, p := newServer(), &proxies{fleet: fleet{}}
	before := describe(v1alpha1.PolicyStatus{}, deny(), progress{required: 2, inForce: 2}, noon)
	s.storeLocked(s.deny, before)
	stale := before
	stale.Version = "an older one"
	s.storeLocked(s.out, stale)
	out := deny()
	out.Kind = translate.EgressPolicy
	k := lead(t, s, p)
	k.Published([]*translate.Policy{deny(), out})
	await(t, "what changed since is not in force", func() (ok bool) { s.do(func() { ok = s.out.Status.InForce == "0/2" }); return ok })
	if got := s.inForce(); got != "2/2" {
		t.Errorf("taking over makes it %s", got)
	}
}

// What is being captured is late without anything happening: the keeper looks again when that is so.
func TestLateCapturesAreToldInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, p := newServer(), &proxies{fleet: fleet{{"n1", "a"}: {has: []string{theDeny, webPod}}, {"n2", "b"}: {has: []string{theDeny, dbPod}}}}
		k := leadBy(t, s, p, &rest.Config{Host: "http://api", Transport: direct{s}})
		captured, enrolled := deny(), deny()
		enrolled.Uncaptured = map[string][]time.Time{"n2": {time.Now().Add(time.Second)}}
		said := func(when string, status metav1.ConditionStatus, reason string) {
			t.Helper()
			s.do(func() {
				if c := meta.FindStatusCondition(s.deny.Status.Conditions, "InForce"); c == nil || c.Status != status || c.Reason != reason {
					t.Errorf("%s: %+v", when, c)
				}
			})
		}
		k.Published([]*translate.Policy{captured})
		time.Sleep(time.Second)
		said("before", metav1.ConditionTrue, reasonInForce)
		k.Published([]*translate.Policy{enrolled})
		time.Sleep(2 * time.Second)
		said("enrolled", metav1.ConditionFalse, reasonPending)
		time.Sleep(captureGrace - 2*time.Second)
		said("not captured", metav1.ConditionFalse, reasonPending)
		time.Sleep(2 * settle)
		said("for too long", metav1.ConditionFalse, reasonNotCaptured)
		k.Published([]*translate.Policy{captured})
		time.Sleep(2 * time.Second)
		said("captured", metav1.ConditionTrue, reasonInForce)
	})
}

// direct is the way to a server without a network.
type direct struct{ to http.Handler }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	recorder := httptest.NewRecorder()
	d.to.ServeHTTP(recorder, r)
	return recorder.Result(), nil
}

// An outcome is of one object and one generation of it.
func TestOutcomesOfOthersAreNotWritten(t *testing.T) {
	s, p := newServer(), &proxies{fleet: fleet{}}
	k := lead(t, s, p)
	other, older, strict := deny(), deny(), deny()
	other.UID = "another"
	older.Kind, strict.Kind = translate.EgressPolicy, translate.PeerAuthentication
	s.do(func() { s.out.Status.ObservedGeneration = 2 })
	k.Published([]*translate.Policy{other, older, strict})
	await(t, "the third is written", func() (ok bool) { s.do(func() { ok = s.strict.Status.InForce != "" }); return ok })
	s.do(func() {
		if s.deny.Status.InForce != "" || s.out.Status.InForce != "" {
			t.Errorf("written: %v", s.writes)
		}
	})
}
