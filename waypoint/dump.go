package main

import (
	"maps"
	"slices"
	"time"
)

// dumps registers the sections of the configuration dump.
func (w *waypoint) dumps() {
	w.admin.Dump("config", w.dumpConfig)
	w.admin.Dump("workloads", func() any { return sorted(maps.Collect(w.store.Snapshot().Workloads())) })
	w.admin.Dump("services", func() any { return sorted(maps.Collect(w.store.Snapshot().Services())) })
	w.admin.Dump("endpoints", func() any { return w.endpoints.Statuses() })
	w.admin.Dump("connections", w.dumpConnections)
}

func sorted[T any](byKey map[string]T) []T {
	all := make([]T, 0, len(byKey))
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		all = append(all, byKey[key])
	}
	return all
}

func (w *waypoint) dumpConfig() any {
	snapshot := w.store.Snapshot()
	var rejected []string
	for _, r := range snapshot.Rejected() {
		rejected = append(rejected, r.Error())
	}
	var expires *time.Time
	if at, ok := w.certs.Expires(w.identity); ok {
		expires = &at
	}
	return map[string]any{
		"gateway":             w.settings.PodNamespace + "/" + w.settings.Gateway,
		"identity":            w.identity,
		"certificate_expires": expires,
		"controller":          w.settings.Controller,
		"connected":           w.feed.Connected(),
		"version":             snapshot.Version(),
		"trust_domain":        snapshot.TrustDomain(),
		"rejected":            rejected,
		"waiting_for":         w.readiness.Missing(),
	}
}

func (w *waypoint) dumpConnections() any {
	type connection struct {
		Client      string        `json:"client"`
		Identity    string        `json:"identity"`
		Destination string        `json:"destination"`
		Workload    string        `json:"workload,omitempty"`
		Age         time.Duration `json:"age_ns"`
	}
	all := []connection{}
	for _, c := range w.conns.Live() {
		one := connection{
			Client: c.Source.Addr.String(), Identity: c.Source.Identity.String(), Destination: c.Destination.Addr.String(), Age: time.Since(c.Started),
		}
		if c.Destination.Workload != nil {
			one.Workload = c.Destination.Workload.UID
		}
		all = append(all, one)
	}
	return all
}
