package push

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/controller/resource"
)

// patience is how long a test waits for what must happen; quiet, for what must not.
const (
	patience = 10 * time.Second
	quiet    = 50 * time.Millisecond
)

// rig is a server behind a real gRPC connection.
type rig struct {
	*Server
	registry *prometheus.Registry
	address  *bufconn.Listener
}

// byMetadata takes a caller's word from the stream's metadata.
type byMetadata struct{}

func (byMetadata) Authenticate(ctx context.Context) (Peer, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if len(md.Get("account")) == 0 {
		return Peer{}, grpcstatus.Error(codes.Unauthenticated, "who are you?")
	}
	return Peer{Namespace: "ambit-system", ServiceAccount: md.Get("account")[0],
		PodName: "ztunnel-" + md.Get("node")[0], Node: md.Get("node")[0]}, nil
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{registry: prometheus.NewRegistry(), address: bufconn.Listen(1 << 16)}
	r.Server = New(Config{
		Authenticator: byMetadata{}, Namespace: "ambit-system", ServiceAccount: "ztunnel",
		Logger: slog.New(slog.DiscardHandler), Registerer: r.registry,
	})
	server := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(server, r.Server)
	go server.Serve(r.address)
	t.Cleanup(server.Stop)
	return r
}

// proxy is a real client of the server.
type proxy struct {
	t         *testing.T
	stream    discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	responses chan *discovery.DeltaDiscoveryResponse
	ended     chan error
	stop      func()
}

func (r *rig) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:bufconn",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return r.address.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// connect opens a stream as an account on a node, and reads all that comes.
func (r *rig) connect(t *testing.T, account, node string) *proxy {
	p := r.connectDeaf(t, account, node)
	go func() {
		for {
			response, err := p.stream.Recv()
			if err != nil {
				p.ended <- err
				return
			}
			p.responses <- response
		}
	}()
	return p
}

// connectDeaf opens a stream that nobody reads from.
func (r *rig) connectDeaf(t *testing.T, account, node string) *proxy {
	t.Helper()
	ctx, stop := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "account", account, "node", node))
	t.Cleanup(stop)
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(r.dial(t)).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &proxy{t: t, stream: stream, stop: stop,
		responses: make(chan *discovery.DeltaDiscoveryResponse, 100), ended: make(chan error, 1)}
}

// ztunnel connects as the proxy of a node and subscribes to all addresses.
func (r *rig) ztunnel(t *testing.T, node string) *proxy {
	t.Helper()
	p := r.connect(t, "ztunnel", node)
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Address})
	return p
}

// onDemand connects as the proxy of a node that will ask for what it needs.
func (r *rig) onDemand(t *testing.T, node string) *proxy {
	t.Helper()
	p := r.connect(t, "ztunnel", node)
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Address,
		ResourceNamesSubscribe: []string{"*"}, ResourceNamesUnsubscribe: []string{"*"}})
	return p
}

func (p *proxy) send(request *discovery.DeltaDiscoveryRequest) {
	p.t.Helper()
	if err := p.stream.Send(request); err != nil && !errors.Is(err, io.EOF) { // why it ended, reading says
		p.t.Fatal(err)
	}
}

func (p *proxy) ask(keys ...string) {
	p.t.Helper()
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: resource.Address, ResourceNamesSubscribe: keys})
}

func (p *proxy) ack(r *discovery.DeltaDiscoveryResponse) {
	p.t.Helper()
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce})
}

func (p *proxy) nack(r *discovery.DeltaDiscoveryResponse, reason string) {
	p.t.Helper()
	p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce,
		ErrorDetail: &status.Status{Code: int32(codes.InvalidArgument), Message: reason}})
}

// receive waits for a response.
func (p *proxy) receive() *discovery.DeltaDiscoveryResponse {
	p.t.Helper()
	select {
	case r := <-p.responses:
		return r
	case err := <-p.ended:
		p.t.Fatalf("stream ended: %v", err)
	case <-time.After(patience):
		p.t.Fatal("no response")
	}
	return nil
}

// expect waits for a response with these resources and removals, in order, and acknowledges it.
func (p *proxy) expect(resources, removed []string) *discovery.DeltaDiscoveryResponse {
	p.t.Helper()
	r := p.receive()
	if !slices.Equal(names(r), resources) || !slices.Equal(r.RemovedResources, removed) {
		p.t.Fatalf("got %q, removed %q; want %q, removed %q", names(r), r.RemovedResources, resources, removed)
	}
	p.ack(r)
	return r
}

// expectNothing fails if something comes.
func (p *proxy) expectNothing() {
	p.t.Helper()
	select {
	case r := <-p.responses:
		p.t.Fatalf("unexpected: %q, removed %q", names(r), r.RemovedResources)
	case err := <-p.ended:
		p.t.Fatalf("stream ended: %v", err)
	case <-time.After(quiet):
	}
}

// expectEnd waits for the server to end the stream.
func (p *proxy) expectEnd(code codes.Code) {
	p.t.Helper()
	select {
	case err := <-p.ended:
		if grpcstatus.Code(err) != code {
			p.t.Fatalf("stream ended with %v, want %s", err, code)
		}
	case <-time.After(patience):
		p.t.Fatal("the stream is still open")
	}
}

func names(r *discovery.DeltaDiscoveryResponse) []string {
	var names []string
	for _, res := range r.Resources {
		names = append(names, res.Name)
	}
	return names
}

// eventually waits for a condition that follows from messages already sent.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// mesh builds a world of addresses.
type mesh map[string]*resource.Resource

// pod adds a workload with an address, on node n1, with a revision that makes
// its content.
func (m mesh) pod(t *testing.T, name, ip, revision string, services ...string) mesh {
	t.Helper()
	w := &workload.Workload{Uid: name, Name: name, CanonicalRevision: revision, Node: "n1"}
	return m.add(t, name, &workload.Address{Type: &workload.Address_Workload{Workload: w}},
		resource.Relations{Aliases: []string{"/" + ip}, SentWith: services, Node: "n1"})
}

func (m mesh) service(t *testing.T, name, ip string) mesh {
	t.Helper()
	return m.add(t, name, &workload.Address{Type: &workload.Address_Service{Service: &workload.Service{Name: name}}},
		resource.Relations{Aliases: []string{"/" + ip}})
}

func (m mesh) add(t *testing.T, name string, message *workload.Address, relations resource.Relations) mesh {
	t.Helper()
	r, err := resource.New(name, message, relations)
	if err != nil {
		t.Fatal(err)
	}
	m[name] = r
	return m
}

func (m mesh) without(name string) mesh { delete(m, name); return m }

// world is a copy of m as it is now.
func (m mesh) world() resource.Resources {
	world := make(resource.Resources)
	for _, r := range m {
		world.Add(r)
	}
	return world
}
