// Package tcpserver has what the conformance suite takes from the package of this
// name: how its TCP server greets and answers. The tests that use it are of
// gateways; those of meshes do not.
package tcpserver

// WelcomeMessage is the first line that the server sends.
const WelcomeMessage = "Gateway API Test TCP Server\n"

// TCPAssertions is the server's answer, as JSON.
type TCPAssertions struct {
	Namespace    string         `json:"namespace"`
	Ingress      string         `json:"ingress"`
	Service      string         `json:"service"`
	Pod          string         `json:"pod"`
	IsTLS        bool           `json:"isTLS"`
	TLSAssertion *TLSAssertions `json:"tls,omitempty"`
}

// TLSAssertions are about the connection.
type TLSAssertions struct {
	ServerName         string `json:"serverName"`
	NegotiatedProtocol string `json:"negotiatedProtocol"`
}
