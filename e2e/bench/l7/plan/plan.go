// Package plan is what all proxies are asked to do: the routes that they carry out, and
// the requests that are made of them.
//
// Routes are what a team's gateway has: most of them by path, one that looks at a
// header too, one with two backends by weight, one for the rest. It is pure.
package plan

import (
	"fmt"
	"strings"
)

// Host is what requests are for.
const Host = "shop.bench"

const (
	// Routes is how many there are, ManyRoutes how many where memory is measured.
	Routes     = 20
	ManyRoutes = 1000
	// FirstPort is that of the first backend, in plaintext.
	FirstPort = 8080
	// FirstTLSPort is that of the first backend, with TLS.
	FirstTLSPort = 8440
	// BodySize of responses.
	BodySize = 1 << 10
	// Forbidden is a path that nobody may ask for, where there is policy.
	Forbidden = "/admin"
)

// Backends are the names of those that routes lead to. They tell theirs in the field
// [NameField].
var Backends = []string{"a", "b", "c", "d"}

// NameField of responses.
const NameField = "x-backend"

// Route leads requests to backends.
type Route struct {
	Name string
	// Prefix of the path, by whole segments; / is everything.
	Prefix string
	// Header, if it is not empty, must have the value.
	Header, Value string
	Backends      []Backend
}

// Backend gets a share of a route's requests.
type Backend struct {
	Name   string
	Weight int
}

// The routes that are by more than the path.
const (
	canaryPrefix   = "/canary"
	canaryHeader   = "x-version"
	canaryValue    = "next"
	weightedPrefix = "/weighted"
)

// List returns n routes, the more specific ones first.
func List(n int) []Route {
	to := func(i int) []Backend { return []Backend{{Backends[i], 100}} }
	others := []Route{
		{Name: "canary", Prefix: canaryPrefix, Header: canaryHeader, Value: canaryValue, Backends: to(3)},
		{Name: "stable", Prefix: canaryPrefix, Backends: to(2)},
		{Name: "weighted", Prefix: weightedPrefix, Backends: []Backend{{"a", 90}, {"b", 10}}},
		{Name: "rest", Prefix: "/", Backends: to(0)},
	}
	var all []Route
	for i := range n - len(others) {
		all = append(all, Route{Name: service(i), Prefix: "/" + service(i), Backends: to(i % len(Backends))})
	}
	return append(all, others...)
}

func service(i int) string { return fmt.Sprintf("service-%03d", i) }

// Request is one that is made.
type Request struct {
	// Text is all of it.
	Text []byte
	// Backends that may answer it: their names, each of one letter.
	Backends string
}

// ForbiddenRequest is one that policy refuses.
func ForbiddenRequest() []byte {
	return []byte("GET " + Forbidden + "/items HTTP/1.1\r\nhost: " + Host + "\r\n\r\n")
}

// Requests are made one after the other, over and over.
func Requests() []Request {
	get := func(path, backends string, fields ...string) Request {
		lines := append([]string{
			"GET " + path + " HTTP/1.1", "host: " + Host, "user-agent: bench/1.0", "accept: application/json",
			"accept-encoding: gzip, deflate, br", "accept-language: en", "x-request-id: 5f1c2b1e-7d5a-4f0c-9b0a-1c2d3e4f5a6b",
		}, fields...)
		return Request{Text: []byte(strings.Join(lines, "\r\n") + "\r\n\r\n"), Backends: backends}
	}
	var all []Request
	for _, i := range []int{0, 5, 10, 15, 2, 7, 13} {
		all = append(all, get("/"+service(i)+"/items/4711?fields=name,price", Backends[i%len(Backends)]))
	}
	return append(all,
		get(canaryPrefix+"/items/4711", "d", canaryHeader+": "+canaryValue),
		get(canaryPrefix+"/items/4711", "c"),
		get(weightedPrefix+"/items/4711", "ab"),
	)
}

// Response is what a backend says.
func Response(backend string) []byte {
	head := "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\n" + NameField + ": " + backend +
		fmt.Sprintf("\r\ncontent-length: %d\r\n\r\n", BodySize)
	return append([]byte(head), strings.Repeat("x", BodySize)...)
}
