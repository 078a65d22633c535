package main

import (
	"slices"
	"testing"
	"time"

	meshapi "github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/controller/ca"
	"github.com/ambit-mesh/ambit/controller/resource"
)

// heldBundle is a proxy that has acknowledged one bundle, or none.
type heldBundle struct {
	has     bool
	version string
}

func (h heldBundle) Has(string, string) (bool, string)   { return h.has, "" }
func (h heldBundle) Version(typeURL, name string) string { return h.version }

// onNode is a proxy and where it runs.
type onNode struct {
	node string
	held heldBundle
}

func versionOf(t *testing.T, b ca.Bundle) string {
	t.Helper()
	r, err := resource.New("cluster.local", &meshapi.TrustBundle{TrustDomain: "cluster.local", Roots: b.Roots, Retiring: b.Retiring}, resource.Relations{})
	if err != nil {
		t.Fatal(err)
	}
	return r.Version
}

// A new root waits for every node that has a ztunnel, or is connected: for exactly this
// bundle, acknowledged by each of its proxies. Only who is not connected is away.
func TestWhoIsWaitedFor(t *testing.T) {
	bundle := ca.Bundle{Roots: []string{"one", "two"}, Retiring: []string{"aa"}}
	now := heldBundle{true, versionOf(t, bundle)}
	before := heldBundle{true, versionOf(t, ca.Bundle{Roots: []string{"one"}})}
	retiringUnknown := heldBundle{true, versionOf(t, ca.Bundle{Roots: bundle.Roots})}
	unacknowledged := heldBundle{false, now.version}
	for name, c := range map[string]struct {
		proxies       []onNode
		running       []string
		waiting, away []string
	}{
		"all have it":                       {[]onNode{{"n1", now}, {"n2", now}}, []string{"n1", "n2"}, nil, nil},
		"one has that of before":            {[]onNode{{"n1", now}, {"n2", before}}, []string{"n1", "n2"}, []string{"n2"}, nil},
		"one has another's retiring roots":  {[]onNode{{"n1", retiringUnknown}}, []string{"n1"}, []string{"n1"}, nil},
		"one has not acknowledged it":       {[]onNode{{"n1", unacknowledged}, {"n2", now}}, []string{"n1", "n2"}, []string{"n1"}, nil},
		"one is away":                       {[]onNode{{"n1", now}}, []string{"n2", "n1"}, []string{"n2"}, []string{"n2"}},
		"one is away, another behind":       {[]onNode{{"n3", before}}, []string{"n3", "n2"}, []string{"n2", "n3"}, []string{"n2"}},
		"of two on a node the first behind": {[]onNode{{"n1", before}, {"n1", now}}, []string{"n1"}, []string{"n1"}, nil},
		"of two on a node the last behind":  {[]onNode{{"n1", now}, {"n1", before}}, []string{"n1"}, []string{"n1"}, nil},
		"one whose pod is gone is heard":    {[]onNode{{"n9", before}}, nil, []string{"n9"}, nil},
		"there is nobody":                   {nil, nil, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			nodes := trustNodes{
				trustDomain: "cluster.local",
				each: func(visit func(string, holdings)) {
					for _, p := range c.proxies {
						visit(p.node, p.held)
					}
				},
				running: func() []string { return c.running },
			}
			waiting, away := nodes.Waiting(bundle)
			if !slices.Equal(waiting, c.waiting) || !slices.Equal(away, c.away) {
				t.Errorf("waits for %v, of which %v are away; want %v, %v", waiting, away, c.waiting, c.away)
			}
		})
	}
}

// A root is in use as long as one node has not said, some time after it signs no more,
// that it has nothing below it.
func TestWhoUsesARoot(t *testing.T) {
	since := time.Now()
	said := map[string]time.Time{}
	nodes := trustNodes{
		running: func() []string { return []string{"n1", "n2"} },
		holdsNone: func(node, fingerprint string, after time.Time) bool {
			return fingerprint == "aa" && said[node].After(after)
		},
	}
	for _, step := range []struct {
		node string
		at   time.Duration
		used bool
	}{
		{"n1", time.Minute, true},
		{"n2", -time.Minute, true},
		{"n2", renewalSettles, true}, // what was on its way may have come since
		{"n2", renewalSettles + time.Second, false},
	} {
		said[step.node] = since.Add(step.at)
		if got := nodes.Used("aa", since); got != step.used {
			t.Errorf("once %s said so after %s: in use %v", step.node, step.at, got)
		}
	}
	if !nodes.Used("bb", since) {
		t.Error("another root, of which nobody spoke, is not in use")
	}
}
