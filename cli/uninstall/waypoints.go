package uninstall

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/workloads"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// What runs for waypoints, or is there because of them, and bears partOf.
var (
	partOf  = "app.kubernetes.io/part-of=ambit"
	runs    = partOf + "," + binding.GatewayLabel
	running = []struct {
		resource schema.GroupVersionResource
		selector string
	}{
		{schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}, runs},
		{schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, runs},
		{schema.GroupVersionResource{Version: "v1", Resource: "services"}, runs},
		{schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}, runs},
		{schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, partOf},
		{gateway.SchemeGroupVersion.WithResource("gatewayclasses"), partOf},
	}
)

// unbind has clients go straight to what is bound to waypoints, as when the labels are
// taken away: no new connection fails. Otherwise clients that are let go before what they
// address would be refused there, for they come past its waypoint.
func (r removal) unbind(ctx context.Context, tell func(string)) error {
	bound, err := r.bound(ctx)
	if err != nil || bound.Done {
		return err
	}
	if err := r.label(ctx, binding.RemovingWaypoints); apierrors.IsNotFound(err) {
		tell("no controller is there to do it")
		return nil
	} else if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, min(r.options.Wait, unbindWait))
	defer cancel()
	if err := kube.Poll(wait, r.bound, tell); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		tell(err.Error() + ": until its pods are let go, clients without a waypoint are refused there")
	}
	return nil
}

// unbindWait bounds the wait for bindings to go: the controller itself takes a node
// that does not answer for heard after 30 seconds, twice.
const unbindWait = 75 * time.Second

// bound asks whether nothing is bound to a waypoint any more.
func (r removal) bound(ctx context.Context) (kube.Progress, error) {
	services, err := r.cluster.Typed.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return kube.Progress{}, fmt.Errorf("list services: %w", err)
	}
	left := 0
	for _, s := range services.Items {
		if c := meta.FindStatusCondition(s.Status.Conditions, binding.Condition); c != nil && c.Reason != binding.PortConflict {
			left++
		}
	}
	pods, err := workloads.List(ctx, r.cluster, "", time.Now())
	if err != nil && !apierrors.IsNotFound(err) {
		return kube.Progress{}, err
	}
	for _, w := range pods {
		if w.Status.Binding != "" {
			left++
		}
	}
	return kube.Progress{Done: left == 0, Text: fmt.Sprintf("%d Services and pods still bound", left)}, nil
}

// label the mesh's namespace as one that is on its way out.
func (r removal) label(ctx context.Context, value string) error {
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]string{binding.RemovingLabel: value}}})
	if err != nil {
		return err
	}
	if _, err = r.cluster.Typed.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, body, metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("label namespace %s: %w", namespace, err)
	}
	return nil
}

// removeWaypoints removes what runs for Gateways, which nobody looks after any more,
// and what the controller said on Services. The Gateways are the user's, as labels are.
func (r removal) removeWaypoints(ctx context.Context, tell func(string)) error {
	for _, kind := range running {
		list, err := r.cluster.Dynamic.Resource(kind.resource).List(ctx, metav1.ListOptions{LabelSelector: kind.selector})
		if apierrors.IsNotFound(err) {
			continue // the cluster does not know the kind
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", kind.resource.Resource, err)
		}
		for _, item := range list.Items {
			if item.GetNamespace() == namespace {
				continue // goes with it
			}
			background := metav1.DeletePropagationBackground
			err := r.cluster.Dynamic.Resource(kind.resource).Namespace(item.GetNamespace()).Delete(ctx, item.GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("delete %s %s/%s: %w", kind.resource.Resource, item.GetNamespace(), item.GetName(), err)
			}
			if kind.resource.Resource == "deployments" {
				tell("waypoint " + item.GetNamespace() + "/" + item.GetName())
			}
		}
	}
	return r.forgetBindings(ctx)
}

// forgetBindings takes back what the controller said on Services.
func (r removal) forgetBindings(ctx context.Context) error {
	services, err := r.cluster.Typed.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	for _, s := range services.Items {
		if meta.FindStatusCondition(s.Status.Conditions, binding.Condition) == nil && meta.FindStatusCondition(s.Status.Conditions, binding.ReadyCondition) == nil {
			continue
		}
		nothing, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Service", "metadata": map[string]any{"namespace": s.Namespace, "name": s.Name, "uid": s.UID}, "status": map[string]any{},
		})
		if err != nil {
			return err
		}
		force := true
		_, err = r.cluster.Typed.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.ApplyYAMLPatchType, nothing,
			metav1.PatchOptions{FieldManager: binding.ConditionManager, Force: &force}, "status")
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("apply status of service %s/%s: %w", s.Namespace, s.Name, err)
		}
	}
	return nil
}
