// Package gateway runs the Gateway API's own conformance tests against a cluster
// with Ambit on it.
//
//	make conformance                     the latest release
//	make conformance SUITE=v1.6.3        an older one: its module file is v1.6.3.mod
//
// It is a module of its own because the suite pins versions of Kubernetes'
// libraries that are not ours. What the last run of a release wrote is in the
// folder beside this one that is named after the release.
//
// The suite of v1.7.0 imports three packages of a module that the module proxy
// does not have; package images stands in for it.
package gateway
