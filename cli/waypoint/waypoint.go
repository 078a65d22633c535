// Package waypoint makes, shows and removes waypoints.
//
//	apply.go   a Gateway of our class, and the label that binds a namespace to it
//	read.go    what there is -> views: labels, and what the controller says of them
//	show.go    views -> table, text, JSON
//	delete.go  removes one that nothing is bound to, or says what is
//
// What is bound follows from labels, so it is known without a controller; how far that
// is, and whether nobody gets past the waypoint, is the controller's word.
package waypoint

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/cli/kube"
)

// DefaultName of a namespace's waypoint.
const DefaultName = "waypoint"

// ErrNoGatewayAPI says that a cluster knows no Gateways.
var ErrNoGatewayAPI = errors.New("the cluster serves no gateways.gateway.networking.k8s.io: install the Gateway API first, " +
	"kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.7.0/standard-install.yaml")

var resource = gateway.SchemeGroupVersion.WithResource("gateways")

// View is one waypoint as people see it.
type View struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// For is what of a labelled namespace it is for.
	For string `json:"for"`
	// Namespaces that may use it: same, all, selector.
	Namespaces string   `json:"namespaces"`
	Addresses  []string `json:"addresses"`
	// Programmed: it has a pod that is ready, and what runs for it is as the Gateway says.
	Programmed bool               `json:"programmed"`
	Conditions []metav1.Condition `json:"conditions"`
	// Bound are Services and pods, and Services that are in the way of these.
	Bound   []Bound   `json:"bound"`
	Created time.Time `json:"created"`

	generation int64
	// labelled are those whose own labels name it, as kubectl names them.
	labelled []labelled
}

// Bound is one thing whose clients go through a waypoint.
type Bound struct {
	// Kind is Service or Pod.
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// State is a reason of package binding, or Unknown while no controller has said anything.
	State string `json:"state"`
	// InForce: clients go through the waypoint, and nobody else is let in.
	InForce bool   `json:"inForce"`
	Message string `json:"message,omitempty"`
	// By is whose label binds it: its own, or its namespace's.
	By string `json:"by"`
}

// Unknown is the state of what no controller has said anything of.
const Unknown = "Unknown"

type labelled struct{ kind, namespace, name string }

// InForce counts what is bound, and in force.
func (v *View) InForce() (n int) {
	for _, b := range v.Bound {
		if b.InForce {
			n++
		}
	}
	return n
}

// gateways lists Gateways; of one namespace, or of all if that is empty.
func gateways(ctx context.Context, cluster *kube.Cluster, namespace string) ([]unstructured.Unstructured, error) {
	list, err := cluster.Dynamic.Resource(resource).Namespace(namespace).List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return nil, ErrNoGatewayAPI
	}
	if err != nil {
		return nil, fmt.Errorf("list gateways.gateway.networking.k8s.io: %w", err)
	}
	return list.Items, nil
}

func decode(object *unstructured.Unstructured) (*gateway.Gateway, error) {
	g := &gateway.Gateway{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, g); err != nil {
		return nil, fmt.Errorf("decode Gateway %s/%s: %w", object.GetNamespace(), object.GetName(), err)
	}
	return g, nil
}
