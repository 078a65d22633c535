// Package conformance runs the Gateway API's own conformance tests, of the release
// that the folder is named after, against a cluster with Ambit on it.
//
//	make conformance
//
// It is a module of its own because the suite pins versions of Kubernetes'
// libraries that are not ours. The report and the list of tests beside it are
// what the last run wrote.
package conformance
