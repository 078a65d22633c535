// Package apps holds the manifests of the applications that the demonstration
// and the end-to-end tests run.
package apps

import _ "embed"

// Shop is the demonstration shop, spread over three nodes in namespace shop.
//
//go:embed shop.yaml
var Shop []byte
