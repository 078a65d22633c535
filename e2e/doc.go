// Package e2e holds the promises to users, one file each, kept on a real
// cluster: `make test-e2e`.
//
// A test makes namespaces of its own and deletes them. Tests that stop a node's
// ztunnel, the controller or a node run alone, one after the other; those that
// touch nothing but their namespaces are marked parallel, and run together once
// the others are done. In a test, unable means failed: there is no skip.
package e2e
