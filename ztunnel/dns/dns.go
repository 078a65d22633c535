// Package dns answers what pods ask DNS servers.
//
// One [Proxy] runs per captured pod:
//
//	proxy.go     questions by UDP and TCP; each gets an answer, in time
//	message.go   what is looked at of a message, and answers of our own
//	resolver.go  asks the node's resolvers, whatever server the pod addressed
//	exchange.go  one question to one server
//	config.go    which resolvers the node has
//	answer.go    the addresses that an answer gives for the name that was asked
//
// Messages pass unchanged but for their identifier: all record types, EDNS, DNSSEC, and the truncated answers after which a
// client asks again by TCP. Search lists are the client's matter.
//
// Invariants: an answer that is passed on, and one that names are learnt from, came from a resolver of the node, for the very
// question; where there is none in time, the answer is SERVFAIL, and the server that the pod addressed is not asked instead.
// Questions that wait, those in flight, their size and their time are bounded. When Run returns, so has every goroutine it started.
//
// Bringing questions here is redirect's job; what learnt names are good for is egress'.
package dns

import (
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Limits of ours.
const (
	// maxInFlight questions of one pod wait for answers: a busy client has some tens.
	maxInFlight = 256
	// maxWaiting questions of one pod wait for others to be answered: hundreds of connections that are opened at once come to
	// a thousand questions, which take a fraction of a second. What is beyond is told so. A client that was told that a name
	// cannot be found gives up, and does not ask again, as it would had the question been lost on the way.
	maxWaiting = 2048
	// maxExchanges of all pods are under way, each with a socket.
	maxExchanges = 4096
	// maxQuestion is the size of a datagram that asks: with every option that is in use it has some hundred bytes.
	maxQuestion = 4096
	// maxStreams of one pod: a client has one or two.
	maxStreams = 64
	// maxPipelined questions of one stream wait for answers.
	maxPipelined = 16
	// idleTimeout of a stream without a question (RFC 7766 section 6.2.3: a few seconds).
	idleTimeout = 10 * time.Second
	// answerTimeout is when a question is given up: clients ask the next server after five seconds.
	answerTimeout = 4 * time.Second
	// tryTimeout is how long one resolver has before the next one is asked as well.
	tryTimeout = 1500 * time.Millisecond
)

// Numbers of the specifications.
const (
	headerSize     = 12    // RFC 1035 section 4.1.1
	minDatagram    = 512   // RFC 1035 section 2.3.4
	maxMessage     = 65535 // RFC 1035 section 4.2.2
	maxLabel       = 63    // RFC 1035 section 2.3.4
	maxName        = 255
	typeIXFR       = dnsmessage.Type(251) // RFC 1995
	typeAXFR       = dnsmessage.TypeAXFR
	opcodeStandard = 0
)

// Port is where DNS servers are asked.
const Port = 53

// Datagrams are a pod's questions by UDP.
type Datagrams interface {
	// Read waits for a question. It says who asks, and whom.
	Read(b []byte) (n int, client, server netip.AddrPort, err error)
	// Write answers client in the name of server.
	Write(b []byte, client, server netip.AddrPort) error
	// Close ends Read with an error that is net.ErrClosed. To close again is no error.
	Close() error
}
