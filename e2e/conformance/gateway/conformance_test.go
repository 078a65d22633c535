//go:build conformance

package gateway

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/conformance"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
	"sigs.k8s.io/yaml"
)

const (
	// meshNamespace is where the suite runs its applications.
	meshNamespace = "gateway-conformance-mesh"
	waypoint      = "waypoint"
	// readyWithin bounds how long a waypoint may take to be there.
	readyWithin = 2 * time.Minute
)

var (
	version = flag.String("ambit-version", "dev", "version of Ambit that the report names")
	report  = flag.String("report", "", "file for the report; empty for none")
	list    = flag.String("list", "", "file for the tests and their results, one a line; empty for none")
)

// supported are all features that the suite has for meshes, those that it counts
// and those that it only runs.
func supported() sets.Set[features.FeatureName] {
	all := features.SetsToNamesSet(features.MeshCoreFeatures, features.MeshExtendedFeatures)
	return all.Insert(
		features.SupportHTTPRoute, features.SupportGRPCRoute,
		features.SupportHTTPRouteResponseHeaderModification, features.SupportHTTPRouteParentRefPort,
		features.SupportHTTPRoute303RedirectStatusCode, features.SupportHTTPRoute307RedirectStatusCode, features.SupportHTTPRoute308RedirectStatusCode,
	)
}

func TestConformance(t *testing.T) {
	options := conformance.DefaultOptions(t)
	options.ConformanceProfiles = []suite.ConformanceProfileName{suite.MeshHTTPConformanceProfileName, suite.MeshGRPCConformanceProfileName}
	options.SupportedFeatures = supported().UnsortedList()
	// The suite deletes its namespaces, and waits for that as long as it takes usually: a waypoint that goes has
	// 45 seconds for what its clients have open.
	options.TimeoutConfig.DeleteTimeout = 2 * time.Minute
	options.NamespaceLabels = map[string]string{"ambit.mesh/dataplane-mode": "ambient"}
	options.Implementation = confv1.Implementation{
		Organization: "ambit-mesh", Project: "ambit", URL: "https://github.com/ambit-mesh/ambit",
		Version: *version, Contact: []string{"https://github.com/ambit-mesh/ambit/issues"},
	}
	results := make(map[string]string)
	options.Hook = func(t *testing.T, test suite.ConformanceTest, _ *suite.ConformanceTestSuite) {
		switch {
		case t.Failed():
			results[test.ShortName] = "FAIL"
		case t.Skipped():
			results[test.ShortName] = "SKIP"
		default:
			results[test.ShortName] = "PASS"
		}
	}
	run, err := suite.NewConformanceTestSuite(options)
	if err != nil {
		t.Fatal(err)
	}
	run.Setup(t, tests.ConformanceTests)
	standBefore(t, run.Client)
	// The suite reports once it has ended, which it notes in a clean-up of its own: ours
	// is registered before, and comes after it.
	t.Cleanup(func() { write(t, run, results) })
	if err := run.Run(t, tests.ConformanceTests); err != nil {
		t.Error(err)
	}
}

// standBefore puts a waypoint before the Services of the suite's namespace.
func standBefore(t *testing.T, c client.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyWithin)
	defer cancel()
	g := &gateway.Gateway{}
	g.Namespace, g.Name = meshNamespace, waypoint
	g.Spec.GatewayClassName = "ambit-waypoint"
	g.Spec.Listeners = []gateway.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}}
	if err := c.Create(ctx, g); client.IgnoreAlreadyExists(err) != nil {
		t.Fatalf("create Gateway %s/%s: %v", g.Namespace, g.Name, err)
	}
	namespace := &corev1.Namespace{}
	if err := c.Get(ctx, types.NamespacedName{Name: meshNamespace}, namespace); err != nil {
		t.Fatal(err)
	}
	labelled := namespace.DeepCopy()
	labelled.Labels["ambit.mesh/use-waypoint"] = waypoint
	if err := c.Patch(ctx, labelled, client.MergeFrom(namespace)); err != nil {
		t.Fatalf("label namespace %s: %v", meshNamespace, err)
	}
	for {
		err := c.Get(ctx, client.ObjectKeyFromObject(g), g)
		if err == nil && meta.IsStatusConditionTrue(g.Status.Conditions, string(gateway.GatewayConditionProgrammed)) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("Gateway %s/%s is not programmed after %s: %v %+v", g.Namespace, g.Name, readyWithin, err, g.Status.Conditions)
		case <-time.After(time.Second):
		}
	}
}

// write what was found; nothing of a run that found nothing.
func write(t *testing.T, run *suite.ConformanceTestSuite, results map[string]string) {
	t.Helper()
	if len(results) == 0 {
		t.Fatal("no test ran")
	}
	if *list != "" {
		var lines strings.Builder
		for _, name := range slices.Sorted(maps.Keys(results)) {
			fmt.Fprintf(&lines, "%s %s\n", results[name], name)
		}
		if err := os.WriteFile(*list, []byte(lines.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
	if *report != "" {
		found, err := run.Report()
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(found.ProfileReports, func(a, b confv1.ProfileReport) int { return strings.Compare(a.Name, b.Name) })
		text, err := yaml.Marshal(found)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(*report, text, 0o644); err != nil {
			t.Error(err)
		}
	}
}
