// Package install puts Ambit into a cluster, and waits until it works.
//
//	distribution  which CNI folders the nodes have
//	render        the embedded manifests, with the cluster's values
//	apply         foundation, controller, ztunnel, each on the server
//	wait          until the controller serves and every node captures
//
// Running it again upgrades. With DryRun it prints the manifests and sends
// nothing but the questions that the rendering needs.
package install

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/term"
	"github.com/ambit-mesh/ambit/deploy"
)

// Namespace that Ambit lives in.
const Namespace = "ambit-system"

// Options of an installation.
type Options struct {
	// Values; empty CNI folders are found from the nodes.
	Values deploy.Values
	// Wait bounds each of the two waits.
	Wait time.Duration
}

// Manifests returns all manifests of an installation.
func Manifests(values deploy.Values) ([]byte, error) {
	return deploy.Render(values, deploy.Foundation, deploy.Controller, deploy.Ztunnel)
}

// DryRun prints the manifests. Without a cluster (nil) the CNI folders are
// those given, or the usual ones.
func DryRun(ctx context.Context, cluster *kube.Cluster, options Options, out io.Writer) error {
	values := options.Values
	if cluster != nil {
		var err error
		if values, _, err = withFolders(ctx, cluster, values); err != nil {
			return err
		}
	} else {
		values = usualFolders(values)
	}
	manifests, err := Manifests(values)
	if err != nil {
		return err
	}
	_, err = out.Write(manifests)
	return err
}

// Run installs or upgrades.
func Run(ctx context.Context, cluster *kube.Cluster, options Options, t *term.Terminal) error {
	var values deploy.Values
	err := t.Step("look at the cluster", func(tell func(string)) error {
		version, err := cluster.Discovery.ServerVersion()
		if err != nil {
			return fmt.Errorf("reach the cluster of context %q: %w", cluster.Context, err)
		}
		var distribution string
		if values, distribution, err = withFolders(ctx, cluster, options.Values); err != nil {
			return err
		}
		tell(fmt.Sprintf("Kubernetes %s, %s: CNI configuration in %s, plugins in %s", version.GitVersion, distribution, values.CNIConfDir, values.CNIBinDir))
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range []struct {
		title string
		part  deploy.Part
		ready func(context.Context) (kube.Progress, error)
		next  string
	}{
		{"namespace and resource definitions", deploy.Foundation, cluster.Established(definitions...), ""},
		{"controller", deploy.Controller, cluster.DeploymentAvailable(Namespace, "controller"),
			"kubectl -n ambit-system describe deployment controller; kubectl -n ambit-system logs deployment/controller"},
		{"ztunnel on every node", deploy.Ztunnel, cluster.DaemonSetReady(Namespace, "ztunnel"),
			"ambit check; kubectl -n ambit-system logs daemonset/ztunnel"},
	} {
		err := t.Step(s.title, func(tell func(string)) error {
			return applyPart(ctx, cluster, values, s.part, s.ready, options.Wait, tell)
		})
		if err != nil {
			if s.next != "" {
				t.Note("what to do: %s", s.next)
			}
			explain(ctx, cluster, t)
			return err
		}
	}
	t.Text("\nAmbit is installed. Next: kubectl label namespace NAME ambit.mesh/dataplane-mode=ambient")
	return nil
}

// definitions of the objects that the controller works with.
var definitions = []string{
	"workloads.ambit.mesh",
	"peerauthentications.ambit.mesh", "authorizationpolicies.ambit.mesh", "egresspolicies.ambit.mesh",
}

func applyPart(ctx context.Context, cluster *kube.Cluster, values deploy.Values, part deploy.Part, ready func(context.Context) (kube.Progress, error), bound time.Duration, tell func(string)) error {
	manifests, err := deploy.Render(values, part)
	if err != nil {
		return err
	}
	if err := cluster.Apply(ctx, manifests); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	if err := kube.Poll(wait, ready, tell); err != nil {
		return err
	}
	cluster.Refresh()
	return nil
}
