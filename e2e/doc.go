// Package e2e holds the promises to users, one file each, kept on a real
// cluster: `make test-e2e`.
//
// A test makes namespaces of its own and deletes them. Tests run one after the
// other, since some of them stop a node's ztunnel or cut a node's power. In a
// test, unable means failed: there is no skip.
package e2e
