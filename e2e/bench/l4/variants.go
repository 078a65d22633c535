package main

import (
	"github.com/ambit-mesh/ambit/e2e/bench/l4/variant"
	"github.com/ambit-mesh/ambit/e2e/bench/result"
	"github.com/ambit-mesh/ambit/e2e/bench/rounds"
)

// variants in the order of the report.
var variants = []variant.Variant{
	{Name: result.None, Start: variant.None},
	{Name: result.Splice, Files: variant.SpliceFiles, Start: variant.Splice},
	{Name: result.Ambit, Start: variant.Captured(false)},
	{Name: result.AmbitBare, Start: variant.Bare},
	{Name: result.HAProxy, Start: variant.HAProxy(0)},
	{Name: result.HAProxyTuned, Start: variant.HAProxyTuned()},
	{Name: "nginx", Start: variant.Nginx},
	{Name: "envoy", Start: variant.Envoy},
	{Name: result.NoneSameNode, SameNode: true, Start: variant.None},
	{Name: result.AmbitSameNode, SameNode: true, Start: variant.Captured(true)},
}

// chosen returns the variants of these names, all if none are given.
func chosen(names []string) ([]variant.Variant, error) {
	return rounds.Pick(variants, func(v variant.Variant) string { return v.Name }, names)
}
