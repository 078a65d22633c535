package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/accept"
)

// settings are what the environment says.
type settings struct {
	NodeName, PodName, PodNamespace string
	PodIP                           netip.Addr
	// Gateway whose waypoint this is, in the pod's namespace. Its pods' service
	// account has the same name.
	Gateway string
	// Controller is host:port; the host is the name in its certificate.
	Controller             string
	TokenPath, RootPath    string
	TrustDomain, ClusterID string
	// Grace is what Kubernetes gives this process between SIGTERM and SIGKILL.
	Grace time.Duration
	// Limits of what one peer may hold.
	Limits accept.Limits
	// Traces is where spans go, by OTLP over gRPC; nil: there are none.
	Traces *url.URL
}

// environment reads variables and collects what is wrong with them.
type environment struct {
	get      func(string) string
	problems []error
}

func (e *environment) text(name, otherwise string) string {
	if value := e.get(name); value != "" {
		return value
	}
	return otherwise
}

func (e *environment) wrong(name, format string, args ...any) {
	e.problems = append(e.problems, fmt.Errorf("%s: %s", name, fmt.Sprintf(format, args...)))
}

func (e *environment) required(name string) string {
	value := e.get(name)
	if value == "" {
		e.wrong(name, "not set")
	}
	return value
}

func (e *environment) file(name, otherwise string) string {
	value := e.text(name, otherwise)
	if !filepath.IsAbs(value) {
		e.wrong(name, "%q is not an absolute path", value)
	}
	return value
}

// readSettings names all that is wrong at once.
func readSettings(get func(string) string) (settings, error) {
	e := &environment{get: get}
	s := settings{
		NodeName:     e.required("NODE_NAME"),
		PodName:      e.required("POD_NAME"),
		PodNamespace: e.required("POD_NAMESPACE"),
		Gateway:      e.required("GATEWAY_NAME"),
		Controller:   e.controller("CONTROLLER_ADDRESS", "https://controller.ambit-system.svc:15012"),
		TokenPath:    e.file("TOKEN_PATH", "/var/run/secrets/tokens/ambit-token"),
		RootPath:     e.file("ROOT_CERT_PATH", "/var/run/secrets/ambit/root-cert.pem"),
		TrustDomain:  e.text("TRUST_DOMAIN", "cluster.local"),
		ClusterID:    e.text("CLUSTER_ID", "Kubernetes"),
		Grace:        e.seconds("TERMINATION_GRACE_PERIOD_SECONDS", 30*time.Second),
		Limits: accept.Limits{
			TunnelsPerAddress:      e.limit("MAX_TUNNELS_PER_ADDRESS"),
			TunnelsPerIdentity:     e.limit("MAX_TUNNELS_PER_IDENTITY"),
			ConnectionsPerAddress:  e.limit("MAX_CONNECTIONS_PER_ADDRESS"),
			ConnectionsPerIdentity: e.limit("MAX_CONNECTIONS_PER_IDENTITY"),
		},
	}
	ip, err := netip.ParseAddr(e.required("POD_IP"))
	if err != nil && get("POD_IP") != "" {
		e.wrong("POD_IP", "%v", err)
	}
	s.PodIP = ip.Unmap()
	s.Traces = e.collector("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
	return s, errors.Join(e.problems...)
}

func (e *environment) controller(name, otherwise string) string {
	address, err := url.Parse(e.text(name, otherwise))
	if err == nil && address.Scheme != "https" {
		err = fmt.Errorf("want https://HOST:PORT, got %q", e.text(name, otherwise))
	}
	if err == nil {
		_, _, err = net.SplitHostPort(address.Host)
	}
	if err != nil {
		e.wrong(name, "%v", err)
		return ""
	}
	return address.Host
}

// collector reads the first variable that is set: http://HOST:PORT, or https. The other
// variables of OTLP are its library's.
func (e *environment) collector(names ...string) *url.URL {
	for _, name := range names {
		value := e.get(name)
		if value == "" {
			continue
		}
		address, err := url.Parse(value)
		if err == nil && (address.Scheme != "http" && address.Scheme != "https" || address.Hostname() == "" || address.Port() == "") {
			err = fmt.Errorf("want http://HOST:PORT or https://HOST:PORT, got %q", value)
		}
		if err != nil {
			e.wrong(name, "%v", err)
			return nil
		}
		return address
	}
	return nil
}

func (e *environment) seconds(name string, otherwise time.Duration) time.Duration {
	text := e.get(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		e.wrong(name, "%q is not a number of seconds", text)
	}
	return time.Duration(n) * time.Second
}

// limit is a number of at least 1; 0, the default, if nothing is said.
func (e *environment) limit(name string) int {
	text := e.get(name)
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		e.wrong(name, "%q is not a number of at least 1", text)
	}
	return n
}
