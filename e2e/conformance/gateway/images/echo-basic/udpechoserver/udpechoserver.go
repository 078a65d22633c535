// Package udpechoserver has what the conformance suite takes from the package of
// this name: the answer of its UDP server. The test that uses it is of gateways.
package udpechoserver

// EchoResponse is the server's answer, as JSON.
type EchoResponse struct {
	Request string `json:"request"`
	Pod     string `json:"pod"`
}
