package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/api/mesh"
	api "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
	"github.com/ambit-mesh/ambit/waypoint/waypointtest"
)

func TestMain(m *testing.M) { waypointtest.Main(m) }

// controller serves what the test wants, and signs for the waypoint alone.
type controller struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	ca.UnimplementedIstioCertificateServiceServer
	t         *testing.T
	authority *certstest.CA
	resources []proto.Message
}

// DeltaAggregatedResources answers the first request of each type.
func (c *controller) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for {
		request, err := g.Recv()
		if err != nil {
			return err
		}
		if request.GetErrorDetail() != nil {
			c.t.Errorf("not accepted: %v", request.GetErrorDetail())
		}
		if request.GetResponseNonce() != "" {
			continue
		}
		own := workload.IsWaypointType(request.GetTypeUrl())
		if names := request.GetResourceNamesSubscribe(); own && (len(names) != 1 || names[0] != "waypoint/shop/way") {
			c.t.Errorf("%s asked for by %v", request.GetTypeUrl(), names)
		}
		response := &discovery.DeltaDiscoveryResponse{TypeUrl: request.GetTypeUrl(), Nonce: "1"}
		for _, m := range c.resources {
			if r := workloadtest.Resource(c.t, m); r.Body.GetTypeUrl() == request.GetTypeUrl() {
				response.Resources = append(response.Resources, &discovery.Resource{Name: r.Name, Version: r.Version, Aliases: r.Aliases, Resource: r.Body})
			}
		}
		if err := g.Send(response); err != nil {
			return err
		}
	}
}

// CreateCertificate signs.
func (c *controller) CreateCertificate(ctx context.Context, request *ca.IstioCertificateRequest) (*ca.IstioCertificateResponse, error) {
	chain, err := c.authority.Fetch(ctx, spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "way"}, []byte(request.GetCsr()))
	return &ca.IstioCertificateResponse{CertChain: chain}, err
}

// serve returns the PEM of the root that the controller's certificate chains to.
func (c *controller) serve(address string) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.ParseIP(address)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		c.t.Fatal(err)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "15012"))
	if err != nil {
		c.t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})))
	discovery.RegisterAggregatedDiscoveryServiceServer(server, c)
	ca.RegisterIstioCertificateServiceServer(server, c)
	go server.Serve(listener)
	c.t.Cleanup(server.Stop)
	return certstest.PEM(der)
}

// ready returns what the kubelet sees.
func ready(t *testing.T) (bool, string) {
	t.Helper()
	response, err := http.Get("http://127.0.0.1:15021/healthz/ready")
	if err != nil {
		return false, err.Error()
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	return response.StatusCode == http.StatusOK, string(text)
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// The process as it is deployed: nothing is ready without the controller; with it,
// requests pass; told to end, it says so first and lets them finish.
func TestFromStartToEnd(t *testing.T) {
	m := waypointtest.New(t)
	client, endpoint := m.Pod("web", "10.9.0.2"), m.Pod("cart", "10.9.0.3")
	release := make(chan struct{})
	endpoint.Serve(endpoint.ID, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		<-release
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
		io.Copy(io.Discard, c)
	})
	port := []*api.Port{{ServicePort: 80, TargetPort: waypointtest.AppPort, AppProtocol: api.AppProtocol_HTTP11}}
	const key = "shop/cart.shop.svc.cluster.local"
	cart := endpoint.Published()
	cart.Services = map[string]*api.PortList{key: {Ports: port}}
	c := &controller{t: t, authority: m.CA, resources: []proto.Message{
		&mesh.Config{TrustDomain: "cluster.local", ClusterId: "Kubernetes"},
		&mesh.TrustBundle{TrustDomain: "cluster.local", Roots: []string{certstest.PEM(m.CA.Bundle()[0].Raw)}},
		client.Published(), cart,
		&api.Service{Name: "cart", Namespace: "shop", Hostname: "cart.shop.svc.cluster.local", Addresses: workloadtest.NetworkAddrs("10.9.100.1"), Ports: port},
		&mesh.Binding{Target: &mesh.Binding_Service{Service: key}, Waypoint: waypointtest.Waypoint},
	}}
	dir := t.TempDir()
	root, token := filepath.Join(dir, "root.pem"), filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := readSettings(env(map[string]string{
		"POD_IP": waypointtest.Address.String(), "CONTROLLER_ADDRESS": "https://10.9.0.20:15012", "ROOT_CERT_PATH": root, "TOKEN_PATH": token,
		"TERMINATION_GRACE_PERIOD_SECONDS": "15",
	}))
	if err != nil {
		t.Fatal(err)
	}
	running, end := context.WithCancel(context.Background())
	defer end()
	ended := make(chan error, 1)
	go func() {
		logger := slog.New(slog.NewTextHandler(t.Output(), nil))
		ended <- run(running, context.Background(), s, logger, logger, &slog.LevelVar{})
	}()
	eventually(t, "it says what it waits for", func() bool {
		_, text := ready(t)
		return strings.Contains(text, "certificate held") && strings.Contains(text, "configuration synced")
	})
	if err := os.WriteFile(root, []byte(c.serve("10.9.0.20")), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is ready", func() bool { is, _ := ready(t); return is })

	stream := client.Dial("10.9.100.1:80")
	fmt.Fprint(stream, "GET / HTTP/1.1\r\nHost: cart\r\n\r\n")
	eventually(t, "the request is under way", func() bool { return len(endpoint.Asked()) == 1 })
	end()
	eventually(t, "it is not ready any more", func() bool { _, text := ready(t); return strings.Contains(text, "ending") })
	close(release)
	response, err := http.ReadResponse(bufio.NewReader(stream), nil)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(response.Body); string(all) != "hello" || err != nil {
		t.Errorf("got %q, %v", all, err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(15 * time.Second):
		t.Error("it does not end")
	}
}
