package feed_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/feed"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

// host is the name in the controller's certificate.
const host = "controller.ambit-system.svc"

// controller is a controller whose every word is the test's.
type controller struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	t       *testing.T
	streams chan *stream

	mu       sync.Mutex
	listener *bufconn.Listener // nil while it is down
	server   *grpc.Server
	ca       *authority
	dials    int
}

// stream is one client's stream, from the controller's side.
type stream struct {
	t        *testing.T
	metadata metadata.MD
	requests chan *discovery.DeltaDiscoveryRequest
	grpc     discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	end      chan error
	nonces   int
}

func newController(t *testing.T) *controller {
	c := &controller{t: t, streams: make(chan *stream), ca: newAuthority(t)}
	c.start()
	t.Cleanup(c.stop)
	return c
}

func (c *controller) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listener = bufconn.Listen(1 << 20)
	c.server = grpc.NewServer(
		grpc.Creds(credentials.NewServerTLSFromCert(c.ca.serving(c.t, host))),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
	)
	discovery.RegisterAggregatedDiscoveryServiceServer(c.server, c)
	go c.server.Serve(c.listener)
}

// stop cuts all streams and refuses connections.
func (c *controller) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil {
		c.server.Stop()
	}
	c.server, c.listener = nil, nil
}

// roots that the controller's certificate chains to.
func (c *controller) roots() *x509.CertPool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ca.pool
}

func (c *controller) dial(ctx context.Context, _ string) (net.Conn, error) {
	c.mu.Lock()
	listener := c.listener
	c.dials++
	c.mu.Unlock()
	if listener == nil {
		return nil, errors.New("connection refused")
	}
	return listener.DialContext(ctx)
}

func (c *controller) dialCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dials
}

func (c *controller) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(g.Context())
	s := &stream{t: c.t, metadata: md, requests: make(chan *discovery.DeltaDiscoveryRequest, 100), grpc: g, end: make(chan error)}
	select {
	case c.streams <- s:
	case <-g.Context().Done():
		return g.Context().Err()
	}
	go func() {
		defer close(s.requests)
		for {
			request, err := g.Recv()
			if err != nil {
				return
			}
			s.requests <- request
		}
	}()
	select {
	case err := <-s.end:
		return err
	case <-g.Context().Done():
		return g.Context().Err()
	}
}

// patience is fake time: longer than any wait of the client.
const patience = time.Minute

// accept waits for the next stream.
func (c *controller) accept() *stream {
	c.t.Helper()
	select {
	case s := <-c.streams:
		return s
	case <-time.After(patience):
		c.t.Fatal("no stream")
		return nil
	}
}

// request waits for the client's next word.
func (s *stream) request() *discovery.DeltaDiscoveryRequest {
	s.t.Helper()
	select {
	case r, ok := <-s.requests:
		if !ok {
			s.t.Fatal("the client left")
		}
		return r
	case <-time.After(patience):
		s.t.Fatal("no request")
		return nil
	}
}

// quiet checks that the client has nothing to say.
func (s *stream) quiet() {
	s.t.Helper()
	synctest.Wait()
	select {
	case r := <-s.requests:
		s.t.Fatalf("unexpected request: %v", r)
	default:
	}
}

// first takes the first request of every type.
func (s *stream) first() map[string]*discovery.DeltaDiscoveryRequest {
	s.t.Helper()
	requests := map[string]*discovery.DeltaDiscoveryRequest{}
	for range workload.Types {
		r := s.request()
		requests[r.GetTypeUrl()] = r
	}
	return requests
}

// send sends a response and returns its nonce.
func (s *stream) send(typeURL string, removed []string, resources ...workload.Resource) string {
	s.t.Helper()
	s.nonces++
	response := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL, RemovedResources: removed, Nonce: fmt.Sprint("nonce-", s.nonces)}
	for _, r := range resources {
		response.Resources = append(response.Resources, &discovery.Resource{Name: r.Name, Version: r.Version, Aliases: r.Aliases, Resource: r.Body})
	}
	if err := s.grpc.Send(response); err != nil {
		s.t.Fatal(err)
	}
	return response.GetNonce()
}

// push sends a response and takes its acknowledgement, which it returns.
func (s *stream) push(typeURL string, removed []string, messages ...proto.Message) *discovery.DeltaDiscoveryRequest {
	s.t.Helper()
	var resources []workload.Resource
	for _, m := range messages {
		resources = append(resources, workloadtest.Resource(s.t, m))
	}
	nonce := s.send(typeURL, removed, resources...)
	ack := s.request()
	if ack.GetResponseNonce() != nonce || ack.GetTypeUrl() != typeURL {
		s.t.Fatalf("not the acknowledgement of %s %s: %v", typeURL, nonce, ack)
	}
	return ack
}

// pushNothing says that there is nothing of these types.
func (s *stream) pushNothing(typeURLs ...string) {
	s.t.Helper()
	for _, t := range typeURLs {
		s.push(t, nil)
	}
}

// serve answers the first request of every type with the messages.
func (s *stream) serve(messages ...proto.Message) map[string]*discovery.DeltaDiscoveryRequest {
	s.t.Helper()
	first := s.first()
	byType := map[string][]proto.Message{}
	for _, m := range messages {
		t := workloadtest.Resource(s.t, m).Body.GetTypeUrl()
		byType[t] = append(byType[t], m)
	}
	for _, t := range workload.Types {
		if ack := s.push(t, nil, byType[t]...); ack.GetErrorDetail() != nil {
			s.t.Fatalf("not acknowledged: %v", ack)
		}
	}
	return first
}

// cut ends the stream from the controller's side.
func (s *stream) cut() { s.end <- errors.New("cut") }

var meshConfig = &mesh.Config{TrustDomain: "cluster.local", ClusterId: "Kubernetes", PodRanges: []string{"10.244.0.0/16"}}

// client runs a feed against c until the test or stop ends it.
type client struct {
	*feed.Client
	store    *workload.Store
	registry *prometheus.Registry
	stop     func()
}

func run(t *testing.T, c *controller, changes ...func(*feed.Config)) *client {
	t.Helper()
	config := feed.Config{
		Address: host + ":15012",
		Node: feed.Node{
			Role: "ztunnel", PodName: "ztunnel-x", Namespace: "ambit-system", NodeName: "n1", ClusterID: "Kubernetes",
			IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:10::2")},
		},
		Roots:  c.roots,
		Token:  func() (string, error) { return "secret", nil },
		Store:  workload.NewStore(),
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Dial:   c.dial,
	}
	registry := prometheus.NewRegistry()
	config.Registerer = registry
	for _, change := range changes {
		change(&config)
	}
	f, err := feed.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	}()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return &client{Client: f, store: config.Store, registry: registry, stop: stop}
}

func isSynced(c *client) bool {
	synctest.Wait()
	select {
	case <-c.Synced():
		return true
	default:
		return false
	}
}

// authority issues the controller's certificate.
type authority struct {
	pool *x509.CertPool
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return &authority{pool: pool, root: root, key: key}
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.root.Raw}))
}

func (a *authority) serving(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.root, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
