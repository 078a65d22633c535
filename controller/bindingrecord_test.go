package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/ambit-mesh/ambit/controller/translate"
)

// seal signs by repeating everything.
type seal struct{}

func (seal) SignRecord(name string, text []byte) ([]byte, error) {
	return append([]byte(name+" "), text...), nil
}

func (s seal) CheckRecord(name string, text, signature []byte) error {
	if want, _ := s.SignRecord(name, text); !bytes.Equal(signature, want) {
		return errors.New("not signed")
	}
	return nil
}

// configMaps keeps the record as the API server does: every write makes a version, an update that names another one than the newest
// is refused, and one that names none replaces whatever there is.
type configMaps struct {
	coreclient.ConfigMapInterface // what nobody calls
	t                             *testing.T
	stored                        *corev1.ConfigMap // nil: none
	version                       int
	updates                       []string // the versions that were named, successful or not
	down                          error
}

var configMapResource = schema.GroupResource{Resource: "configmaps"}

func (c *configMaps) Get(_ context.Context, name string, _ metav1.GetOptions) (*corev1.ConfigMap, error) {
	if c.down != nil {
		return nil, c.down
	}
	if c.stored == nil || name != bindingsConfigMap {
		return nil, apierrors.NewNotFound(configMapResource, name)
	}
	return c.stored.DeepCopy(), nil
}

func (c *configMaps) Create(_ context.Context, object *corev1.ConfigMap, _ metav1.CreateOptions) (*corev1.ConfigMap, error) {
	switch {
	case object.ResourceVersion != "":
		return nil, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	case c.stored != nil:
		return nil, apierrors.NewAlreadyExists(configMapResource, object.Name)
	}
	return c.store(object), nil
}

func (c *configMaps) Update(_ context.Context, object *corev1.ConfigMap, _ metav1.UpdateOptions) (*corev1.ConfigMap, error) {
	c.updates = append(c.updates, object.ResourceVersion)
	switch {
	case c.stored == nil:
		return nil, apierrors.NewNotFound(configMapResource, object.Name)
	case object.ResourceVersion != "" && object.ResourceVersion != c.stored.ResourceVersion:
		return nil, apierrors.NewConflict(configMapResource, object.Name, errors.New("changed"))
	}
	return c.store(object), nil
}

func (c *configMaps) store(object *corev1.ConfigMap) *corev1.ConfigMap {
	if object.Name != bindingsConfigMap {
		c.t.Errorf("written to %q", object.Name)
	}
	c.version++
	c.stored = object.DeepCopy()
	c.stored.ResourceVersion = strconv.Itoa(c.version)
	return c.stored.DeepCopy()
}

// edit has somebody who is no leader change it.
func (c *configMaps) edit(change func(*corev1.ConfigMap)) {
	edited := c.stored.DeepCopy()
	change(edited)
	c.store(edited)
}

// leader reads and writes the record, and holds the Lease unless lost.
type leader struct {
	*bindingsObject
	t    *testing.T
	lost error
}

func newLeader(t *testing.T, client *configMaps) *leader {
	l := &leader{t: t}
	l.bindingsObject = &bindingsObject{
		client: client, signer: seal{}, logger: slog.New(slog.DiscardHandler), leads: func(context.Context) error { return l.lost },
	}
	return l
}

func (l *leader) reads(when, want string) {
	l.t.Helper()
	if got, err := l.read(l.t.Context()); err != nil || got != want {
		l.t.Errorf("%s: read %q, %v; want %q", when, got, err, want)
	}
}

func (l *leader) writes(text string) {
	l.t.Helper()
	if err := l.write(l.t.Context(), text); err != nil {
		l.t.Errorf("write %q: %v", text, err)
	}
}

func (l *leader) isRefused(when, text string) error {
	l.t.Helper()
	err := l.write(l.t.Context(), text)
	if err == nil {
		l.t.Errorf("%s: written all the same", when)
	}
	return err
}

// What a leader wrote is what the next one reads.
func TestTheRecordOfBindingsIsTheLeadersWord(t *testing.T) {
	client := &configMaps{t: t}
	first, second := newLeader(t, client), newLeader(t, client)
	first.reads("nobody has led", "")
	for _, text := range []string{"one", "two"} {
		first.writes(text)
		second.reads("the next leader", text)
	}
	client.down = errors.New("the API server is down")
	if text, err := second.read(t.Context()); err == nil {
		t.Errorf("read %q from an API server that is down", text)
	}
}

// What somebody else wrote is nothing, however little of it that is; and is replaced.
func TestAForgedRecordIsNone(t *testing.T) {
	for name, forge := range map[string]func(*corev1.ConfigMap){
		"another text": func(c *corev1.ConfigMap) { c.Data[bindingsKey] = "forged" },
		"no text":      func(c *corev1.ConfigMap) { c.Data = nil },
		"no signature": func(c *corev1.ConfigMap) { c.BinaryData = nil },
		"the signature of another record": func(c *corev1.ConfigMap) {
			c.BinaryData[bindingsSignatureKey], _ = seal{}.SignRecord("another", []byte(c.Data[bindingsKey]))
		},
		"a signature that ends early": func(c *corev1.ConfigMap) {
			c.BinaryData[bindingsSignatureKey] = c.BinaryData[bindingsSignatureKey][:3]
		},
	} {
		client := &configMaps{t: t}
		newLeader(t, client).writes("one")
		client.edit(forge)
		second := newLeader(t, client)
		second.reads(name, "")
		second.writes("two")
		newLeader(t, client).reads(name+", and written anew", "two")
	}
}

// The version that an update names is the one that was read or written last: so the server refuses what is written over another's word.
// That is no success; the next attempt is made on that word.
func TestARecordIsWrittenOverWhatWasRead(t *testing.T) {
	client := &configMaps{t: t}
	first := newLeader(t, client)
	first.reads("nobody has led", "")
	first.writes("one")  // makes version 1
	first.writes("two")  // over 1
	first.writes("more") // over 2
	second := newLeader(t, client)
	second.reads("the next leader", "more")
	second.writes("three") // over 3
	client.edit(func(c *corev1.ConfigMap) { c.Data[bindingsKey] = "somebody's" })
	if err := second.isRefused("edited", "four"); !apierrors.IsConflict(err) { // over 4, of 5
		t.Errorf("edited: %v", err)
	}
	second.writes("four") // over 5
	if want := []string{"1", "2", "3", "4", "5"}; !slices.Equal(client.updates, want) {
		t.Errorf("updates name versions %q, want %q", client.updates, want)
	}

	// Somebody deletes it: the attempt after the one that finds that out makes it anew.
	client.stored = nil
	second.isRefused("deleted", "five")
	second.writes("five")
	newLeader(t, client).reads("made anew", "five")
	// Or makes it first.
	client.stored = nil
	third := newLeader(t, client)
	third.reads("deleted", "")
	second.isRefused("deleted", "six")
	second.writes("six")
	third.isRefused("made meanwhile", "seven")
	third.writes("seven")
	newLeader(t, client).reads("made meanwhile", "seven")
}

// A leader that is over, and has not heard of that, does not replace what the next one wrote, however often it tries.
func TestALeaderThatIsOverReplacesNothing(t *testing.T) {
	for name, begins := range map[string]func(over *leader, client *configMaps){
		"over its own":   func(over *leader, _ *configMaps) { over.writes("one") },
		"over nothing":   func(over *leader, _ *configMaps) { over.reads("nobody has led", "") },
		"over a deleted": func(over *leader, client *configMaps) { over.writes("one"); client.stored = nil },
	} {
		for why, lost := range map[string]error{"another leads": errLeaseLost, "nobody knows who leads": errors.New("the API server is down")} {
			client := &configMaps{t: t}
			over, next := newLeader(t, client), newLeader(t, client)
			begins(over, client)
			next.reads(name, map[string]string{"over its own": "one"}[name])
			next.writes("the next leader's")
			over.lost = lost
			for range 3 {
				if err := over.isRefused(name, "of one that is over"); !errors.Is(err, lost) {
					t.Errorf("%s, %s: %v", name, why, err)
				}
			}
			newLeader(t, client).reads(name+", "+why, "the next leader's")
			next.writes("on it")

			over.lost = nil // it was somebody's hand, and the API server is back
			over.isRefused("not known to lead until then", "it leads")
			over.writes("it leads")
		}
	}
}

// While it cannot be read what somebody else wrote, that is not replaced.
func TestWhatCannotBeReadIsNotReplaced(t *testing.T) {
	client := &configMaps{t: t}
	one := newLeader(t, client)
	one.writes("one")
	client.edit(func(c *corev1.ConfigMap) { c.Data[bindingsKey] = "somebody's" })
	client.down = errors.New("no reads")
	for range 2 {
		if err := one.isRefused("it cannot be read", "two"); !errors.Is(err, client.down) {
			t.Errorf("it cannot be read: %v", err)
		}
	}
	client.down = nil
	one.isRefused("not read until then", "two")
	one.writes("two")
}

// Where there is no room for all, those that are on their way are kept.
func TestARecordHasABound(t *testing.T) {
	all := []recordedBinding{
		{Kind: "Service", Namespace: "shop", Name: "a", Waypoint: "shop/waypoint", Stage: translate.Enforced},
		{Kind: "Service", Namespace: "shop", Name: "b", Waypoint: "shop/waypoint", From: "shop/other", Stage: translate.Led},
		{Kind: "Service", Namespace: "shop", Name: "c", Waypoint: "shop/waypoint", Stage: translate.Enforced, Leaving: true},
		{Kind: "Service", Namespace: "shop", Name: "d", Waypoint: "shop/waypoint", Stage: translate.Announced},
		{Kind: "Service", Namespace: "shop", Name: "e", Waypoint: "shop/waypoint", From: "shop/other", Stage: translate.Enforced},
	}
	whole, err := encodeBindings(slices.Clone(all), maxBindingsBytes)
	if err != nil {
		t.Fatal(err)
	}
	for most, want := range map[int]bindingsFile{len(whole): {Bindings: all}, len(whole) - 1: {Bindings: all[1:], Partial: true}} {
		text, err := encodeBindings(slices.Clone(all), most)
		if err != nil {
			t.Fatal(err)
		}
		file, err := decodeBindings(text)
		if err != nil || len(text) > most || file.Partial != want.Partial || !slices.Equal(file.Bindings, want.Bindings) {
			t.Errorf("in %d bytes: %d, %+v, %v", most, len(text), file, err)
		}
	}
	if text, err := encodeBindings(all, 200); err == nil {
		t.Errorf("no room for those on their way, and got %s", text)
	}
}

// Of more bindings than one object has room for, the next leader takes those that are not written for enforced, and goes on with the others.
func TestTheNextLeaderOfMoreThanARecordHolds(t *testing.T) {
	const many = 2000
	s := newStages(t)
	s.acked = 1
	names := []string{"old"}
	for i := range many {
		names = append(names, strings.Repeat("n", 500)+strconv.Itoa(i))
	}
	publish := func(s *stages, wanted string) {
		bound := []*translate.Bound{s.service("old", waypoint(wanted))}
		for _, name := range names[1:] {
			bound = append(bound, s.service(name))
		}
		s.publish(bound...)
		s.check()
	}
	publish(s, "waypoint")
	publish(s, "another")
	if file, err := decodeBindings(s.record.text); err != nil || !file.Partial || len(file.Bindings) != 1 || len(s.record.text) > maxBindingsBytes {
		t.Fatalf("%d bytes with %d bindings, %v", len(s.record.text), len(file.Bindings), err)
	}
	second := stagesAfter(t, s.record)
	second.standing("on its way", "another 1 from waypoint", "another")
	if got := second.service(names[many]).Stage; got != translate.Enforced {
		t.Errorf("what was enforced is at stage %d", got)
	}
	publish(second, "another")
	second.held["another old"], second.acked = true, second.publication
	second.standing("acknowledged", "another 2 from waypoint", "another")
	if got := second.service("fresh").Stage; got != translate.Announced {
		t.Errorf("what is bound after that is at stage %d", got)
	}
}
