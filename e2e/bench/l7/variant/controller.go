package variant

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/e2e/bench/pki"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// controllerPort is where it listens, in the waypoint's pod.
const controllerPort = 15012

// controller says the same to whoever asks, once, and signs for the waypoint alone.
type controller struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	ca.UnimplementedIstioCertificateServiceServer
	authority *pki.Authority
	resources []workload.Resource
	// rejected gets what the waypoint does not accept.
	rejected chan error
}

// startController serves the site's waypoint until stop.
func startController(site Site) (_ *controller, stop func(), err error) {
	c := &controller{rejected: make(chan error, 1)}
	if c.authority, err = pki.Load(site.PKI); err != nil {
		return nil, nil, err
	}
	for _, message := range site.world(true, c.authority.RootPEM()) {
		r, err := resource(message)
		if err != nil {
			return nil, nil, err
		}
		c.resources = append(c.resources, r)
	}
	own, err := c.authority.Issue(site.Proxy.IPv4.String(), pki.ServerID)
	if err != nil {
		return nil, nil, err
	}
	var listener net.Listener
	err = site.Proxy.Do(func() (err error) {
		listener, err = net.Listen("tcp", site.at(controllerPort).String())
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("start the controller: %w", err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS13})))
	discovery.RegisterAggregatedDiscoveryServiceServer(server, c)
	ca.RegisterIstioCertificateServiceServer(server, c)
	go server.Serve(listener)
	return c, server.Stop, nil
}

// DeltaAggregatedResources answers the first request of each type.
func (c *controller) DeltaAggregatedResources(g discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for {
		request, err := g.Recv()
		if err != nil {
			return err
		}
		if detail := request.GetErrorDetail(); detail != nil {
			select {
			case c.rejected <- errors.New(detail.GetMessage()):
			default:
			}
		}
		if request.GetResponseNonce() != "" {
			continue
		}
		response := &discovery.DeltaDiscoveryResponse{TypeUrl: request.GetTypeUrl(), Nonce: "1"}
		for _, r := range c.resources {
			if r.Body.GetTypeUrl() == request.GetTypeUrl() {
				response.Resources = append(response.Resources, &discovery.Resource{Name: r.Name, Version: r.Version, Resource: r.Body})
			}
		}
		if err := g.Send(response); err != nil {
			return err
		}
	}
}

// CreateCertificate signs.
func (c *controller) CreateCertificate(ctx context.Context, request *ca.IstioCertificateRequest) (*ca.IstioCertificateResponse, error) {
	chain, err := c.authority.Fetch(ctx, waypointID, []byte(request.GetCsr()))
	return &ca.IstioCertificateResponse{CertChain: chain}, err
}
