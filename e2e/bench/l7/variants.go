package main

import (
	"github.com/ambit-mesh/ambit/e2e/bench/l7/variant"
	"github.com/ambit-mesh/ambit/e2e/bench/result"
	"github.com/ambit-mesh/ambit/e2e/bench/rounds"
)

// variants in the order of the report.
var variants = []variant.Variant{
	{Name: result.None, Start: variant.None},
	{Name: result.Ambit, Policy: true, Start: variant.Waypoint},
	{Name: result.HAProxy, Start: variant.HAProxy(true)},
	{Name: result.Nginx, Start: variant.Nginx(true)},
	{Name: result.Envoy, Start: variant.Envoy(true)},
	{Name: result.AmbitBare, Start: variant.Bare},
	{Name: result.HAProxyPlain, Start: variant.HAProxy(false)},
	{Name: result.NginxPlain, Start: variant.Nginx(false)},
	{Name: result.EnvoyPlain, Start: variant.Envoy(false)},
}

// chosen returns the variants of these names, all if none are given.
func chosen(names []string) ([]variant.Variant, error) {
	return rounds.Pick(variants, func(v variant.Variant) string { return v.Name }, names)
}
