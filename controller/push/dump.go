package push

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
)

// Dump is the state of the server for people: what is published, and how far
// each proxy has come.
type Dump struct {
	Publication uint64      `json:"publication"`
	PublishedAt time.Time   `json:"publishedAt"`
	Proxies     []ProxyDump `json:"proxies"`
	// Resources by type and name.
	Resources map[string]map[string]ResourceDump `json:"resources"`
}

// ProxyDump is one connected proxy.
type ProxyDump struct {
	Node      string              `json:"node"`
	Pod       string              `json:"pod"`
	ID        string              `json:"id"`
	Connected time.Time           `json:"connected"`
	Types     map[string]TypeDump `json:"types"`
}

// TypeDump is one type on one connection.
type TypeDump struct {
	Full     bool     `json:"full"`
	Keys     int      `json:"keys,omitempty"`
	Held     int      `json:"held"`
	Acked    uint64   `json:"acked"`
	InFlight uint64   `json:"inFlight,omitempty"`
	Rejected []string `json:"rejected,omitempty"`
	Detail   string   `json:"rejection,omitempty"`
}

// ResourceDump is one published resource.
type ResourceDump struct {
	Version string          `json:"version"`
	Aliases []string        `json:"aliases,omitempty"`
	Content json.RawMessage `json:"content"`
}

// Dump returns the state of the server.
func (s *Server) Dump() Dump {
	d := Dump{Resources: make(map[string]map[string]ResourceDump)}
	if w := s.world.Load(); w != nil {
		d.Publication, d.PublishedAt = w.publication, w.at
		for typeURL, set := range w.sets {
			d.Resources[shortType(typeURL)] = set.dump()
		}
	}
	for _, c := range s.snapshot() {
		d.Proxies = append(d.Proxies, c.dump())
	}
	return d
}

func (s *set) dump() map[string]ResourceDump {
	d := make(map[string]ResourceDump, len(s.byName))
	for name, r := range s.byName {
		content, err := protojson.Marshal(r.Message)
		if err != nil {
			content, _ = json.Marshal(err.Error())
		}
		d[name] = ResourceDump{Version: r.Version, Aliases: r.Aliases, Content: content}
	}
	return d
}

func (c *connection) dump() ProxyDump {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := ProxyDump{
		Node:      c.peer.Node,
		Pod:       c.peer.PodName,
		ID:        c.nodeID,
		Connected: c.created,
		Types:     make(map[string]TypeDump, len(c.subscriptions)),
	}
	for typeURL, s := range c.subscriptions {
		t := TypeDump{
			Full:     s.full,
			Keys:     len(s.keys),
			Held:     len(s.held.byName),
			Acked:    s.acked,
			Rejected: slices.Sorted(maps.Keys(s.rejected)),
			Detail:   s.detail,
		}
		if s.inFlight != nil {
			t.InFlight = s.inFlight.publication
		}
		d.Types[shortType(typeURL)] = t
	}
	return d
}
