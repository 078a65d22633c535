// Package uninstall removes Ambit from a cluster, also where only traces of it
// are left.
//
//	say       what the cluster has of Ambit, before anything is removed
//	unbind    clients go straight to what is bound to waypoints, in order, by the controller
//	release   all pods are given back to plain networking, in order, by ztunnel
//	ztunnel   the DaemonSet goes first: while it runs it would repair what is removed
//	nodes     a DaemonSet cleans each node: chain entry, then pins, then binary
//	rest      controller, what it runs for waypoints, resource definitions, namespace
//
// A namespace that was deleted by hand leaves captured pods cut off and the CNI
// gate in place, since what protects outlives its process. The same command
// mends that: it makes the namespace anew for as long as the cleaning takes.
//
// Pods go on with plain networking. Labels on namespaces and pods, Gateways and routes
// are the user's and stay.
package uninstall

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/term"
	"github.com/ambit-mesh/ambit/cli/workloads"
	"github.com/ambit-mesh/ambit/deploy"
	"github.com/ambit-mesh/ambit/internal/binding"
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
	t.Text("Pods go on without the mesh: their traffic is no longer encrypted, and no waypoint stands before them. Labels, Gateways and routes stay.")
	if !options.Confirm() {
		return fmt.Errorf("not confirmed, nothing was removed")
	}
	r := removal{cluster: cluster, options: options}
	for _, s := range []struct {
		title string
		run   func(context.Context, func(string)) error
	}{
		{"lead clients past waypoints", r.unbind},
		{"give pods back to plain networking", r.releasePods},
		{"stop ztunnel", r.stopZtunnel},
		{"clean every node", r.cleanNodes},
		{"remove the controller", r.removeController},
		{"remove what runs for waypoints", r.removeWaypoints},
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

// releasePods has ztunnel let go of every pod as it does when a label is taken
// away: no new connection fails. Where it cannot, because the mesh does not work,
// the removal goes on: pods are let go when their node is cleaned.
func (r removal) releasePods(ctx context.Context, tell func(string)) error {
	if err := r.label(ctx, binding.RemovingAll); apierrors.IsNotFound(err) {
		tell("no ztunnel is there to do it: it is done when nodes are cleaned")
		return nil
	} else if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, min(r.options.Wait, releaseWait))
	defer cancel()
	if err := kube.Poll(wait, r.released, tell); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		tell(err.Error() + ": they are let go when their node is cleaned, and cut off until then")
	}
	return nil
}

// releaseWait bounds the wait for pods that ztunnel has to let go.
const releaseWait = 30 * time.Second

// released asks whether no node has a pod captured any more.
func (r removal) released(ctx context.Context) (kube.Progress, error) {
	list, err := workloads.List(ctx, r.cluster, "", time.Now())
	if apierrors.IsNotFound(err) {
		return kube.Progress{Done: true, Text: "no workload is known"}, nil
	}
	if err != nil {
		return kube.Progress{}, err
	}
	left := 0
	for _, w := range list {
		if w.Status.Protocol == v1alpha1.ProtocolHBONE || w.Status.State == v1alpha1.StateCaptured || w.Status.State == v1alpha1.StatePending {
			left++
		}
	}
	return kube.Progress{Done: left == 0, Text: fmt.Sprintf("%d of %d pods still to be let go", left, len(list))}, nil
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
