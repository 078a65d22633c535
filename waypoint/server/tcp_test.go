package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/conns"
	"github.com/ambit-mesh/ambit/internal/hbone"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/waypoint/server"
	"github.com/ambit-mesh/ambit/waypoint/target"
	"github.com/ambit-mesh/ambit/waypoint/waypointtest"
)

func TestMain(m *testing.M) { waypointtest.Main(m) }

const vip = "10.9.100.1:80"

// policies are the test's word.
type policies func(*workload.Snapshot, *target.Target, target.Client, *workload.Workload) error

func (p policies) Connection(s *workload.Snapshot, t *target.Target, c target.Client, w *workload.Workload, _ netip.AddrPort) error {
	return p(s, t, c, w)
}

// requests is where HTTP goes, none of which is sent here.
type requests struct{ t *testing.T }

func (r requests) Serve(_, _ context.Context, conn net.Conn, _ *server.Session, _ bool) {
	all, _ := io.ReadAll(conn)
	fmt.Fprintf(conn, "taken for HTTP: %q", all)
	conn.Close()
}

func everybody(*workload.Snapshot, *target.Target, target.Client, *workload.Workload) error {
	return nil
}

// start runs a waypoint before a service of one endpoint, which speaks first.
func start(t *testing.T, app api.AppProtocol, decide policies) (m *waypointtest.Mesh, client, endpoint *waypointtest.Pod, s *workload.Service) {
	m = waypointtest.New(t)
	client, endpoint = m.Pod("web", "10.9.0.2"), m.Pod("db", "10.9.0.3")
	s = m.Service("db", "10.9.100.1", app, endpoint)
	m.Start(func(c *server.Config) { c.Policies, c.HTTP = decide, requests{t} })
	return m, client, endpoint, s
}

func greet(c net.Conn) {
	fmt.Fprint(c, "220 hello\r\n")
	all, _ := io.ReadAll(c)
	fmt.Fprintf(c, "you said %s", all)
	c.(hbone.Stream).CloseWrite()
}

// talk says hello once it was greeted.
func talk(t *testing.T, c hbone.Stream) string {
	t.Helper()
	greeting := make([]byte, len("220 hello\r\n"))
	if _, err := io.ReadFull(c, greeting); err != nil {
		t.Fatalf("no greeting: %v", err)
	}
	fmt.Fprint(c, "EHLO web")
	c.CloseWrite()
	rest, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(rest)
}

// Declared or not, a server that speaks first is heard, by the client of its own
// address, through a tunnel of the waypoint's own identity.
func TestTCPThroughTheWaypoint(t *testing.T) {
	for name, app := range map[string]api.AppProtocol{"declared": api.AppProtocol_TCP, "undeclared": api.AppProtocol_UNKNOWN} {
		t.Run(name, func(t *testing.T) {
			m, client, endpoint, s := start(t, app, everybody)
			m.Bind(s)
			endpoint.Serve(endpoint.ID, greet)
			if got := talk(t, client.Dial(vip)); got != "you said EHLO web" {
				t.Errorf("got %q", got)
			}
			asked := endpoint.Asked()
			if len(asked) != 1 || asked[0].Peer.ServiceAccount != "way" || asked[0].Authority != "10.9.0.3:8080" {
				t.Fatalf("the endpoint was asked for %v", asked)
			}
			forwarded := asked[0].Header.Values("Forwarded")
			if len(forwarded) != 1 || !strings.HasPrefix(forwarded[0], `for="10.9.0.2:`) {
				t.Errorf("on behalf of %q", forwarded)
			}
			line := m.Lines("connection", 1)[0]
			for key, want := range map[string]any{
				"direction": "waypoint", "reason": "Closed", "src.identity": client.ID.String(), "dst.identity": endpoint.ID.String(),
				"dst.hbone_addr": vip, "dst.service": "db.shop.svc.cluster.local", "dst.workload": "db", "bytes_sent": 8.0,
			} {
				if line[key] != want {
					t.Errorf("%s is %v, want %v", key, line[key], want)
				}
			}
		})
	}
}

// A pod's own address stands for the bound service that it serves there.
func TestAPodAddressIsTheServicesWithOneEndpoint(t *testing.T) {
	m, client, endpoint, s := start(t, api.AppProtocol_TCP, everybody)
	other := m.Pod("other", "10.9.0.4")
	m.Service("db", "10.9.100.1", api.AppProtocol_TCP, endpoint, other)
	m.Bind(s)
	endpoint.Serve(endpoint.ID, greet)
	other.Serve(other.ID, greet)
	for range 5 {
		talk(t, client.Dial("10.9.0.3:8080"))
	}
	if n := len(other.Asked()); n != 0 {
		t.Errorf("another endpoint was asked %d times", n)
	}
}

func TestAnotherEndpointIsTried(t *testing.T) {
	m, client, endpoint, s := start(t, api.AppProtocol_TCP, everybody)
	dead := m.Pod("dead", "10.9.0.4")
	m.Service("db", "10.9.100.1", api.AppProtocol_TCP, endpoint, dead)
	m.Bind(s)
	endpoint.Serve(endpoint.ID, greet)
	for range 8 {
		talk(t, client.Dial(vip))
	}
}

// Plain TCP is for who is published as taking no tunnels, and for nobody else.
func TestPlaintextIsForWhoTakesNoTunnels(t *testing.T) {
	m := waypointtest.New(t)
	client, endpoint := m.Pod("web", "10.9.0.2"), m.Pod("db", "10.9.0.3", waypointtest.Plain)
	m.Bind(m.Service("db", "10.9.100.1", api.AppProtocol_TCP, endpoint))
	m.Start(func(c *server.Config) { c.Policies = policies(everybody) })
	listener, err := net.Listen("tcp", "10.9.0.3:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		c, err := listener.Accept()
		if err == nil {
			fmt.Fprint(c, "plain")
			c.Close()
		}
	}()
	if got, err := io.ReadAll(client.Dial(vip)); string(got) != "plain" {
		t.Errorf("got %q, %v", got, err)
	}
}

// Each of these is broken in one way, and nothing passes.
func TestNothingPasses(t *testing.T) {
	bound := func(m *waypointtest.Mesh, s *workload.Service) { m.Bind(s) }
	deny := func(*workload.Snapshot, *target.Target, target.Client, *workload.Workload) error {
		return conns.Fail(conns.PolicyDenied, errors.New("denied by the test"))
	}
	for name, test := range map[string]struct {
		to      string
		bind    func(*waypointtest.Mesh, *workload.Service)
		decide  policies
		as      func(*waypointtest.Pod) spiffe.ID
		refused conns.Reason
		status  int
	}{
		"no binding":                     {vip, func(*waypointtest.Mesh, *workload.Service) {}, everybody, nil, target.NotBound, 503},
		"no such port":                   {"10.9.100.1:81", bound, everybody, nil, target.UnknownPort, 503},
		"nobody's address":               {"10.9.77.7:80", bound, everybody, nil, target.NotBound, 503},
		"outside the mesh":               {"192.0.2.1:80", bound, everybody, nil, target.NotBound, 503},
		"another port of an endpoint":    {"10.9.0.3:9090", bound, everybody, nil, target.NotBound, 503},
		"the mesh's port of an endpoint": {"10.9.0.3:15008", bound, everybody, nil, conns.Loop, 400},
		"the waypoint itself":            {"10.9.0.10:80", bound, everybody, nil, conns.Loop, 400},
		"the waypoint's own loopback":    {"127.0.0.1:80", bound, everybody, nil, conns.BadTarget, 400},
		"policy denies":                  {vip, bound, deny, nil, conns.PolicyDenied, 401},
		"the endpoint has another identity": {vip, bound, everybody, func(*waypointtest.Pod) spiffe.ID {
			return spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "thief"}
		}, conns.TLSFailed, 503},
		"not HTTP, where routes for HTTP are attached": {vip, func(m *waypointtest.Mesh, s *workload.Service) {
			m.Bind(s, func(b *mesh.Binding) { b.Routes = []*mesh.Route{{Kind: mesh.Route_HTTP, Namespace: "shop", Name: "r"}} })
		}, everybody, nil, "", 200},
	} {
		t.Run(name, func(t *testing.T) {
			m, client, endpoint, s := start(t, api.AppProtocol_TCP, test.decide)
			test.bind(m, s)
			as := endpoint.ID
			if test.as != nil {
				as = test.as(endpoint)
			}
			var said []byte
			endpoint.Serve(as, func(c net.Conn) { said, _ = io.ReadAll(c) })
			stream, err := client.Open(test.to)
			if test.status == 200 {
				if err == nil {
					fmt.Fprint(stream, "EHLO web\r\n\r\n")
					stream.SetDeadline(time.Now().Add(2 * time.Second))
					io.ReadAll(stream)
				}
			} else {
				var status *hbone.StatusError
				if !errors.As(err, &status) || status.Code != test.status || !strings.HasPrefix(status.Reason, string(test.refused)) {
					t.Errorf("answered %v, want %d %s", err, test.status, test.refused)
				}
				m.Lines("connection", 1)
			}
			if asked := endpoint.Asked(); len(asked) != 0 || len(said) != 0 {
				t.Errorf("the endpoint was asked for %v, and heard %q", asked, said)
			}
		})
	}
}

// Of the waypoint's own ports the one of its metrics is reached, and no other.
func TestMetricsAreReached(t *testing.T) {
	m := waypointtest.New(t)
	listener, err := net.Listen("tcp", m.Self().Addresses[0].String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "ambit_up 1\n")
			c.Close()
		}
	}()
	metrics := listener.Addr().(*net.TCPAddr)
	m.Start(func(c *server.Config) {
		c.Policies, c.HTTP, c.Metrics = policies(everybody), requests{t}, uint16(metrics.Port)
	})
	client := m.Pod("web", "10.9.0.2")
	stream, err := client.Open(metrics.String())
	if err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(stream); string(said) != "ambit_up 1\n" || err != nil {
		t.Errorf("got %q, %v", said, err)
	}
	for _, to := range []string{fmt.Sprintf("%s:%d", metrics.IP, metrics.Port-1), fmt.Sprintf("127.0.0.1:%d", metrics.Port), fmt.Sprintf("10.9.77.7:%d", metrics.Port)} {
		if _, err := client.Open(to); err == nil {
			t.Errorf("%s is reached", to)
		}
	}
}

// newer gives the first route's rule a field of a later version: number 999, a varint of 1.
func newer(change func(*mesh.Binding)) func(*mesh.Binding) {
	return func(b *mesh.Binding) {
		change(b)
		b.Routes[0].Rules[0].ProtoReflect().SetUnknown(protoreflect.RawFields{0xb8, 0x3e, 1})
	}
}

// Connections go where a TCPRoute says; one that cannot be carried out refuses them.
func TestTCPRoutes(t *testing.T) {
	m, client, endpoint, s := start(t, api.AppProtocol_TCP, everybody)
	other := m.Pod("other", "10.9.0.4")
	elsewhere := m.Service("other", "10.9.100.2", api.AppProtocol_TCP, other)
	endpoint.Serve(endpoint.ID, greet)
	other.Serve(other.ID, greet)
	route := func(kind mesh.Route_Kind, backends ...*mesh.RouteBackend) func(*mesh.Binding) {
		return func(b *mesh.Binding) {
			b.Routes = []*mesh.Route{{Kind: kind, Namespace: "shop", Name: "db", Rules: []*mesh.RouteRule{{Backends: backends}}}}
		}
	}
	m.Bind(s, route(mesh.Route_TCP, &mesh.RouteBackend{Service: elsewhere.Key, Port: 80, Weight: 1}, &mesh.RouteBackend{Service: s.Key, Port: 80}))
	for range 3 {
		talk(t, client.Dial(vip))
	}
	if n := len(other.Asked()); n != 3 || len(endpoint.Asked()) != 0 {
		t.Errorf("%d of 3 went where they should", n)
	}
	for name, change := range map[string]func(*mesh.Binding){
		"no backend":         route(mesh.Route_TCP),
		"an invalid backend": route(mesh.Route_TCP, &mesh.RouteBackend{Weight: 1, Invalid: "not permitted"}),
		"an unknown backend": route(mesh.Route_TCP, &mesh.RouteBackend{Service: "shop/nobody", Port: 80, Weight: 1}),
		"a port it has not":  route(mesh.Route_TCP, &mesh.RouteBackend{Service: s.Key, Port: 81, Weight: 1}),
		"a newer route":      newer(route(mesh.Route_TCP, &mesh.RouteBackend{Service: s.Key, Port: 80, Weight: 1})),
	} {
		m.Bind(s, change)
		var status *hbone.StatusError
		if _, err := client.Open(vip); !errors.As(err, &status) || !strings.HasPrefix(status.Reason, string(server.RouteInvalid)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(endpoint.Asked()) != 0 || len(other.Asked()) != 3 {
		t.Error("something passed")
	}
}

// What one namespace attaches for its own clients is nothing to others: they may go on to
// speak what they do.
func TestRoutesOfAnotherNamespace(t *testing.T) {
	m, client, endpoint, s := start(t, api.AppProtocol_UNKNOWN, everybody)
	endpoint.Serve(endpoint.ID, greet)
	m.Bind(s, func(b *mesh.Binding) {
		b.Routes = []*mesh.Route{{Kind: mesh.Route_HTTP, Namespace: "elsewhere", Name: "r", Consumer: true, Rules: []*mesh.RouteRule{{}}}}
	})
	if got := talk(t, client.Dial(vip)); got != "you said EHLO web" {
		t.Errorf("got %q", got)
	}
}

// Where a TCPRoute is attached, what looks like a request goes where it says as well.
func TestTCPRouteTakesEverything(t *testing.T) {
	m, client, endpoint, s := start(t, api.AppProtocol_UNKNOWN, everybody)
	other := m.Pod("other", "10.9.0.4")
	elsewhere := m.Service("other", "10.9.100.2", api.AppProtocol_TCP, other)
	endpoint.Serve(endpoint.ID, greet)
	other.Serve(other.ID, greet)
	m.Bind(s, func(b *mesh.Binding) {
		b.Routes = []*mesh.Route{{Kind: mesh.Route_TCP, Namespace: "shop", Name: "db", Rules: []*mesh.RouteRule{{Backends: []*mesh.RouteBackend{{Service: elsewhere.Key, Port: 80, Weight: 1}}}}}}
	})
	c := client.Dial(vip)
	fmt.Fprint(c, "GET / HTTP/1.1\r\nhost: db\r\n\r\n")
	c.CloseWrite()
	if all, err := io.ReadAll(c); err != nil || !strings.Contains(string(all), "you said GET /") {
		t.Errorf("answer %q, %v", all, err)
	}
	if len(other.Asked()) != 1 || len(endpoint.Asked()) != 0 {
		t.Error("the route was passed by")
	}
}

// Clients of TLS go where the TLSRoute with the most specific hostname for the name that
// they ask for says, unread otherwise; where none is, or none can be told, nowhere.
func TestTLSRoutes(t *testing.T) {
	for name, app := range map[string]api.AppProtocol{"declared": api.AppProtocol_TLS, "undeclared": api.AppProtocol_UNKNOWN} {
		t.Run(name, func(t *testing.T) {
			m, client, own, s := start(t, app, everybody)
			pods := map[string]*waypointtest.Pod{"own": own}
			services := map[string]*workload.Service{"own": s}
			for i, name := range []string{"exact", "wild", "deep"} {
				pods[name] = m.Pod(name, fmt.Sprintf("10.9.0.%d", 20+i))
				services[name] = m.Service(name, fmt.Sprintf("10.9.100.%d", 20+i), api.AppProtocol_TLS, pods[name])
			}
			for _, p := range pods {
				p.Serve(p.ID, serveTLS(t, p.Name))
			}
			rule := func(to string) []*mesh.RouteRule {
				return []*mesh.RouteRule{{Backends: []*mesh.RouteBackend{{Service: services[to].Key, Port: 80, Weight: 1}}}}
			}
			m.Bind(s, func(b *mesh.Binding) {
				b.Routes = []*mesh.Route{
					{Kind: mesh.Route_TCP, Namespace: "shop", Name: "all", Rules: rule("own")},
					{Kind: mesh.Route_TLS, Namespace: "shop", Name: "wild", Hostnames: []string{"*.example.com"}, Rules: rule("wild")},
					{Kind: mesh.Route_TLS, Namespace: "shop", Name: "deep", Hostnames: []string{"*.deep.example.com"}, Rules: rule("deep")},
					{Kind: mesh.Route_TLS, Namespace: "shop", Name: "exact", Created: 2, Hostnames: []string{"other.org", "a.example.com"}, Rules: rule("exact")},
					{Kind: mesh.Route_TLS, Namespace: "shop", Name: "later", Created: 3, Hostnames: []string{"a.example.com"}, Rules: rule("own")},
				}
			})
			for asked, want := range map[string]string{
				"a.example.com": "exact", "A.Example.COM": "exact", "other.org": "exact", "b.example.com": "wild",
				"x.y.example.com": "wild", "x.deep.example.com": "deep", "deep.example.com": "wild",
				"example.com": "", "else.org": "", "": "",
			} {
				if got := askTLS(client.Dial(vip), asked); got != want {
					t.Errorf("%q came to %q, want %q", asked, got, want)
				}
			}
			for name, first := range map[string]string{"a request": "GET / HTTP/1.1\r\n\r\n", "half a hello": "\x16\x03\x01\x02\x00\x01", "nothing": ""} {
				c := client.Dial(vip)
				fmt.Fprint(c, first)
				c.CloseWrite()
				if all, err := io.ReadAll(c); err == nil {
					t.Errorf("%s: answered %q", name, all)
				}
			}
			if len(own.Asked()) != 0 {
				t.Error("the routes were passed by")
			}
		})
	}
}

// serveTLS says who it is, to clients of TLS.
func serveTLS(t *testing.T, name string) func(net.Conn) {
	certificate := selfSigned(t)
	return func(c net.Conn) {
		over := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate}})
		fmt.Fprint(over, name)
		over.Close()
	}
}

func askTLS(c net.Conn, name string) string {
	over := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	said, err := io.ReadAll(over)
	if err != nil {
		return ""
	}
	return string(said)
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A connection lives only as long as what it was granted by.
func TestLiveConnectionsAreJudgedAgain(t *testing.T) {
	for name, change := range map[string]func(*waypointtest.Mesh, *mesh.Binding){
		"the binding goes": func(m *waypointtest.Mesh, b *mesh.Binding) { m.Remove(b) },
		"policy changes": func(m *waypointtest.Mesh, b *mesh.Binding) {
			m.Publish(&mesh.RequestPolicy{Namespace: "shop", Name: "deny", Action: mesh.RequestPolicy_DENY})
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, client, endpoint, s := start(t, api.AppProtocol_TCP, func(s *workload.Snapshot, _ *target.Target, _ target.Client, _ *workload.Workload) error {
				if _, ok := s.RequestPolicy("shop/deny"); ok {
					return conns.Fail(conns.PolicyDenied, errors.New("denied by the test"))
				}
				return nil
			})
			b := m.Bind(s)
			endpoint.Serve(endpoint.ID, greet)
			stream := client.Dial(vip)
			if _, err := io.ReadFull(stream, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			// What has nothing to do with it leaves it alone.
			m.Pod("bystander", "10.9.0.9")
			time.Sleep(50 * time.Millisecond)
			if len(m.Conns.Live()) != 1 {
				t.Fatal("cut for nothing")
			}
			change(m, b)
			if _, err := io.ReadAll(stream); err == nil {
				t.Error("it lives on, or ended in order")
			}
			m.Lines("connection", 1)
		})
	}
}
