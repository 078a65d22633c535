// Command controller runs a mesh: it tells data planes what there is, gives
// identities to them, and writes down what they observe.
//
//	main.go       settings, logging, signals
//	run.go        the parts, and how they are put together
//	publish.go    Kubernetes and the nodes' reports -> what proxies are told
//	serve.go      the gRPC server on which data planes call
//	lead.go       the one replica that writes and serves, and how it takes over
//
// Every replica knows; only the leader writes and serves. Nothing is served before
// everything that it is made from is known: a list that is not complete yet
// would look like pods that are gone.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"strings"

	"k8s.io/klog/v2"

	"github.com/ambit-mesh/ambit/controller/gateway"
	"github.com/ambit-mesh/ambit/internal/daemon"
)

func main() {
	if err := start(os.Args[1:], os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "controller:", err)
		os.Exit(1)
	}
}

func start(args []string, getenv func(string) string) error {
	settings, err := parseSettings(args, getenv)
	if err != nil {
		return err
	}
	logger, level, err := daemon.Logger(os.Stderr, getenv)
	if err != nil {
		return err
	}
	klog.SetSlogLogger(logger.With("library", "client-go"))

	ctx, force, stop := daemon.SignalContext(context.Background())
	defer stop()
	return run(ctx, force, settings, logger, level)
}

// settings of one controller.
type settings struct {
	// kubeconfig is empty inside the cluster.
	kubeconfig string
	// podName and namespace are this replica's.
	podName   string
	namespace string

	clusterID     string
	trustDomain   string
	clusterDomain string
	// podRanges besides those of the Nodes, serviceRanges besides those of the ServiceCIDRs.
	podRanges, serviceRanges []string
	// waypoints are what all that run for Gateways have in common.
	waypoints gateway.Settings

	// Addresses to listen on.
	grpc, admin, metrics, readiness string
}

// list is of words that are separated by commas and spaces.
func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}

func parseSettings(args []string, getenv func(string) string) (settings, error) {
	hostname, _ := os.Hostname() // only the fallback of a fallback
	s := settings{
		podName:       cmp.Or(getenv("POD_NAME"), fmt.Sprintf("%s-%d", hostname, os.Getpid())),
		namespace:     cmp.Or(getenv("POD_NAMESPACE"), "ambit-system"),
		clusterID:     cmp.Or(getenv("CLUSTER_ID"), "Kubernetes"),
		trustDomain:   cmp.Or(getenv("TRUST_DOMAIN"), "cluster.local"),
		clusterDomain: cmp.Or(getenv("CLUSTER_DOMAIN"), "cluster.local"),
		podRanges:     list(getenv("POD_RANGES")),
		serviceRanges: list(getenv("SERVICE_RANGES")),
	}
	s.waypoints = gateway.Settings{
		Image:      cmp.Or(getenv("WAYPOINT_IMAGE"), "ambit.mesh/waypoint:dev"),
		Controller: "https://controller." + s.namespace + ".svc:15012",
		ClusterID:  s.clusterID, TrustDomain: s.trustDomain,
		LogFormat: cmp.Or(getenv("LOG_FORMAT"), "text"), LogLevel: cmp.Or(getenv("LOG_LEVEL"), "info"),
	}
	flags := flag.NewFlagSet("controller", flag.ContinueOnError)
	flags.StringVar(&s.kubeconfig, "kubeconfig", "", "file with the way to the API server, to run outside of the cluster")
	flags.StringVar(&s.grpc, "grpc-address", ":15012", "where data planes call")
	flags.StringVar(&s.admin, "admin-address", "127.0.0.1:15000", "where the admin server listens")
	flags.StringVar(&s.metrics, "metrics-address", ":15020", "where the metrics server listens")
	flags.StringVar(&s.readiness, "readiness-address", ":15021", "where the readiness server listens")
	if err := flags.Parse(args); err != nil {
		return settings{}, err
	}
	if flags.NArg() > 0 {
		return settings{}, fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	return s, nil
}
