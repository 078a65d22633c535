package main

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	meshapi "github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/controller/ca"
	"github.com/ambit-mesh/ambit/controller/push"
	"github.com/ambit-mesh/ambit/controller/report"
	"github.com/ambit-mesh/ambit/controller/resource"
)

// trustNodes tells the authority, which thinks in nodes, what nodes work with:
// all that have a ztunnel, and all that are connected.
type trustNodes struct {
	trustDomain string
	// each visits every connected proxy, with its node.
	each func(visit func(node string, has holdings))
	// running are the nodes that have a ztunnel, connected or not.
	running func() []string
	// holdsNone tells whether a node said, after a time, that it has no certificate
	// below a root.
	holdsNone func(node, fingerprint string, after time.Time) bool
}

// holdings are what a proxy has acknowledged.
type holdings interface {
	Has(typeURL, name string) (has bool, refusal string)
	Version(typeURL, name string) string
}

func newTrustNodes(server *push.Server, reports *report.Registry, pods *ca.Pods, namespace, trustDomain string) trustNodes {
	return trustNodes{
		trustDomain: trustDomain,
		each: func(visit func(string, holdings)) {
			server.EachProxy(func(h push.Holdings) { visit(h.Proxy.Node, h) })
		},
		running:   func() []string { return pods.NodesWith(namespace, ca.TunnelServiceAccount) },
		holdsNone: reports.HoldsNone,
	}
}

// Waiting returns the nodes that are not known to work with exactly this bundle,
// and those among them that are not connected.
func (n trustNodes) Waiting(b ca.Bundle) (waiting, away []string) {
	return n.without(&meshapi.TrustBundle{TrustDomain: n.trustDomain, Roots: b.Roots, Retiring: b.Retiring})
}

// Behind returns the nodes that are not known to work with exactly this list of
// what is revoked.
func (n trustNodes) Behind(list *meshapi.RevocationList) []string {
	waiting, _ := n.without(list)
	return waiting
}

// without returns the nodes that are not known to hold a message, which is named
// after the trust domain, and those among them that are not connected.
func (n trustNodes) without(message proto.Message) (waiting, away []string) {
	want, err := resource.New(n.trustDomain, message, resource.Relations{})
	if err != nil {
		return []string{err.Error()}, nil // all of it is ASCII: it does not happen, and would wait
	}
	connected := map[string]bool{}
	n.each(func(node string, h holdings) {
		has, _ := h.Has(want.Body.GetTypeUrl(), n.trustDomain)
		has = has && h.Version(want.Body.GetTypeUrl(), n.trustDomain) == want.Version
		before, seen := connected[node]
		connected[node] = has && (before || !seen)
	})
	for node, has := range connected {
		if !has {
			waiting = append(waiting, node)
		}
	}
	for _, node := range n.running() {
		if _, ok := connected[node]; !ok {
			waiting, away = append(waiting, node), append(away, node)
		}
	}
	slices.Sort(waiting)
	slices.Sort(away)
	return waiting, away
}

// renewalSettles is what a certificate that was on its way when a root stopped
// signing takes to arrive.
const renewalSettles = 3 * time.Second

// Used tells whether a node may hold a certificate below a root.
func (n trustNodes) Used(fingerprint string, since time.Time) bool {
	return slices.ContainsFunc(n.running(), func(node string) bool {
		return !n.holdsNone(node, fingerprint, since.Add(renewalSettles))
	})
}
