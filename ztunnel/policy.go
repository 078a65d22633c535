package main

import "github.com/ambit-mesh/ambit/ztunnel/inbound"

// permissive is the policy while there are no others: every connection is
// admitted, in plaintext too. Mutual TLS is offered and used between pods of the
// mesh, and not yet demanded of anybody.
type permissive struct{}

func (permissive) Authorize(inbound.Connection) (allowed bool, policy string) { return true, "" }
