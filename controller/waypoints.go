package main

import (
	"slices"

	"k8s.io/apimachinery/pkg/types"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/controller/ca"
	"github.com/ambit-mesh/ambit/controller/push"
	"github.com/ambit-mesh/ambit/controller/watch"
	"github.com/ambit-mesh/ambit/internal/binding"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// waypoints tells push which pods are a waypoint's: those that the controller made
// for a Gateway of our class, as its Deployment made them.
type waypoints struct {
	pods    *ca.Pods
	objects interface {
		GatewayAPI() (watch.GatewayObjects, error)
	}
}

// of returns the key of what is for the waypoint of a peer.
func (w waypoints) of(peer push.Peer) (key string, ok bool) {
	pod, found := w.pods.Pod(peer.Namespace, peer.PodName)
	if !found || string(pod.UID) != peer.PodUID || pod.Spec.ServiceAccountName != peer.ServiceAccount {
		return "", false
	}
	name := types.NamespacedName{Namespace: peer.Namespace, Name: pod.Labels[binding.GatewayLabel]}
	if name.Name != peer.ServiceAccount {
		return "", false
	}
	objects, err := w.objects.GatewayAPI()
	if err != nil {
		return "", false
	}
	return workload.WaypointAlias(name.Namespace, name.Name), slices.ContainsFunc(objects.Gateways, func(g *gateway.Gateway) bool {
		return g.Namespace == name.Namespace && g.Name == name.Name && binding.IsWaypoint(g)
	})
}
