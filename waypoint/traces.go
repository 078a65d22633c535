package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ambit-mesh/ambit/internal/daemon"
)

// lastSpans is how long those that are not sent yet may take when the process ends.
const lastSpans = 2 * time.Second

// traces are the spans of requests on their way to a collector; nil: there are none.
// Which requests get one is for OTEL_TRACES_SAMPLER to say.
type traces struct {
	provider *sdk.TracerProvider
	conn     *grpc.ClientConn
}

// newTraces dials nobody yet: a collector that is not there costs its spans, and
// nothing else.
func newTraces(s settings, mesh issuers, logger *slog.Logger) (*traces, error) {
	if s.Traces == nil {
		return nil, nil
	}
	credential := insecure.NewCredentials()
	if s.Traces.Scheme == "https" {
		credential = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	// By its name, so that a Service is known for one.
	conn, err := grpc.NewClient("passthrough:///"+s.Traces.Host, grpc.WithTransportCredentials(credential), grpc.WithContextDialer(mesh.dialCollector))
	if err != nil {
		return nil, fmt.Errorf("collector of spans: %w", err)
	}
	exporter, err := otlptracegrpc.New(context.Background(), otlptracegrpc.WithGRPCConn(conn))
	if err != nil {
		return nil, fmt.Errorf("collector of spans: %w", err)
	}
	about, err := resource.Merge(resource.Default(), resource.NewSchemaless(
		attribute.String("service.name", s.Gateway+"."+s.PodNamespace), attribute.String("service.version", daemon.Version),
		attribute.String("service.instance.id", s.PodName),
		attribute.String("k8s.namespace.name", s.PodNamespace), attribute.String("k8s.pod.name", s.PodName), attribute.String("k8s.node.name", s.NodeName),
	))
	if err != nil {
		return nil, fmt.Errorf("describe the process to the collector of spans: %w", err)
	}
	otel.SetErrorHandler(&complaints{logger: logger})
	return &traces{provider: sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about)), conn: conn}, nil
}

func (t *traces) tracer() trace.Tracer {
	if t == nil {
		return nil
	}
	return t.provider.Tracer("github.com/ambit-mesh/ambit/waypoint")
}

// close sends what is left.
func (t *traces) close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastSpans)
	defer cancel()
	t.provider.Shutdown(ctx) // what goes wrong is told to the error handler
	t.conn.Close()
}

// dialCollector connects through the mesh to what is a Service of it, and else directly.
func (i issuers) dialCollector(ctx context.Context, addr string) (net.Conn, error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, err
	}
	if conn, found, err := i.DialService(ctx, host, uint16(port), false); found {
		return conn, err
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
}

// complaints logs what goes wrong with spans, not more than once in a while.
type complaints struct {
	logger *slog.Logger

	mu   sync.Mutex
	last time.Time // guarded by mu
}

const complainEvery = time.Minute

// Handle is otel.ErrorHandler's.
func (c *complaints) Handle(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.last) >= complainEvery {
		c.last = now
		c.logger.Warn("spans are lost", "error", err)
	}
}
