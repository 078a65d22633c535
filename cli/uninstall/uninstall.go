// Package uninstall removes Ambit from a cluster, also where only traces of it
// are left.
//
//	say       what the cluster has of Ambit, before anything is removed
//	ztunnel   the DaemonSet goes first: while it runs it would repair what is removed
//	nodes     a DaemonSet cleans each node: chain entry, then pins, then binary
//	rest      controller, resource definitions, namespace
//
// A namespace that was deleted by hand leaves captured pods cut off and the CNI
// gate in place, since what protects outlives its process. The same command
// mends that: it makes the namespace anew for as long as the cleaning takes.
//
// Pods go on with plain networking. Labels on namespaces and pods are the
// user's and stay.
package uninstall

import (
	"context"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/term"
	"github.com/ambit-mesh/ambit/deploy"
)

const namespace = "ambit-system"

// Options of a removal.
type Options struct {
	Values deploy.Values
	// Wait bounds each wait.
	Wait time.Duration
	// Confirm is asked before anything is removed.
	Confirm func() bool
}

// Run removes everything.
func Run(ctx context.Context, cluster *kube.Cluster, options Options, t *term.Terminal) error {
	everything, err := deploy.Render(options.Values, deploy.Foundation, deploy.Controller, deploy.Ztunnel)
	if err != nil {
		return err
	}
	present, err := cluster.Present(ctx, everything)
	if err != nil {
		return err
	}
	t.Text("This removes from the cluster of context %q:", cluster.Context)
	for _, name := range present {
		t.Note("%s", name)
	}
	if len(present) == 0 {
		t.Note("no object of Ambit is left")
	}
	t.Note("on every node: the CNI chain entry, the BPF programs, the plug-in, /var/lib/ambit")
	t.Text("Pods go on without the mesh: their traffic is no longer encrypted. Labels stay.")
	if !options.Confirm() {
		return fmt.Errorf("not confirmed, nothing was removed")
	}
	r := removal{cluster: cluster, options: options}
	for _, s := range []struct {
		title string
		run   func(context.Context, func(string)) error
	}{
		{"stop ztunnel", r.stopZtunnel},
		{"clean every node", r.cleanNodes},
		{"remove the controller", r.removeController},
		{"remove resource definitions and namespace", r.removeFoundation},
	} {
		if err := t.Step(s.title, func(tell func(string)) error { return s.run(ctx, tell) }); err != nil {
			t.Note("what to do: mend what is said above and run ambit uninstall again; it goes on where it stopped")
			return err
		}
	}
	return nil
}

type removal struct {
	cluster *kube.Cluster
	options Options
}

func (r removal) poll(ctx context.Context, ask func(context.Context) (kube.Progress, error), tell func(string)) error {
	wait, cancel := context.WithTimeout(ctx, r.options.Wait)
	defer cancel()
	return kube.Poll(wait, ask, tell)
}

func (r removal) remove(ctx context.Context, tell func(string), parts ...deploy.Part) error {
	manifests, err := deploy.Render(r.options.Values, parts...)
	if err != nil {
		return err
	}
	removed, err := r.cluster.Delete(ctx, manifests)
	for _, name := range removed {
		tell(name)
	}
	return err
}

func (r removal) stopZtunnel(ctx context.Context, tell func(string)) error {
	if err := r.remove(ctx, tell, deploy.Ztunnel); err != nil {
		return err
	}
	return r.poll(ctx, r.cluster.Gone(namespace, "app=ztunnel"), tell)
}

func (r removal) cleanNodes(ctx context.Context, tell func(string)) error {
	// A namespace that is on its way out takes nothing new.
	if err := r.apply(ctx, deploy.Foundation); err != nil {
		return err
	}
	if err := r.apply(ctx, deploy.CleanNode); err != nil {
		return err
	}
	if err := r.poll(ctx, r.cluster.DaemonSetReady(namespace, "clean-node"), tell); err != nil {
		return err
	}
	if err := r.remove(ctx, func(string) {}, deploy.CleanNode); err != nil {
		return err
	}
	return r.poll(ctx, r.cluster.Gone(namespace, "app=clean-node"), tell)
}

func (r removal) apply(ctx context.Context, part deploy.Part) error {
	manifests, err := deploy.Render(r.options.Values, part)
	if err != nil {
		return err
	}
	return r.cluster.Apply(ctx, manifests)
}

func (r removal) removeController(ctx context.Context, tell func(string)) error {
	return r.remove(ctx, tell, deploy.Controller)
}

func (r removal) removeFoundation(ctx context.Context, tell func(string)) error {
	if err := r.remove(ctx, tell, deploy.Foundation); err != nil {
		return err
	}
	return r.poll(ctx, r.cluster.NamespaceGone(namespace), tell)
}
