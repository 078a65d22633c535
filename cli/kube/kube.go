// Package kube is the command line's door to a cluster.
//
//	Connect     kubeconfig -> clients
//	Apply       server-side apply of a YAML stream, as field manager `ambit`
//	Delete      removes the objects of a YAML stream
//	Wait*       poll until the world is as wanted, or tell why it is not
//
// It knows Kubernetes and nothing of a mesh.
package kube

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// Cluster is a connection to one cluster.
type Cluster struct {
	// Context names the kubeconfig context, for messages.
	Context string
	// Namespace that the kubeconfig has for commands without one.
	Namespace string
	Config    *rest.Config
	Typed     kubernetes.Interface
	Dynamic   dynamic.Interface
	// Discovery is cached; Refresh forgets what it knew.
	Discovery discovery.CachedDiscoveryInterface
	mapper    meta.ResettableRESTMapper
}

// Connect reads the kubeconfig (an empty path: KUBECONFIG, then the default
// file) and makes the clients. It sends nothing yet.
func Connect(kubeconfig, context string) (*Cluster, error) {
	loading := clientcmd.NewDefaultClientConfigLoadingRules()
	loading.ExplicitPath = kubeconfig
	deferred := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(loading, &clientcmd.ConfigOverrides{CurrentContext: context})
	config, err := deferred.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w (set KUBECONFIG, or --kubeconfig FILE)", err)
	}
	// A command line asks in bursts.
	config.QPS, config.Burst = 100, 200
	raw, err := deferred.RawConfig()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	if context == "" {
		context = raw.CurrentContext
	}
	cluster, err := connect(context, config)
	if err != nil {
		return nil, err
	}
	if cluster.Namespace, _, err = deferred.Namespace(); err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	return cluster, nil
}

func connect(context string, config *rest.Config) (*Cluster, error) {
	typed, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	cached := memory.NewMemCacheClient(typed.Discovery())
	return &Cluster{
		Context: context, Config: config, Typed: typed, Dynamic: dyn,
		Discovery: cached, mapper: restmapper.NewDeferredDiscoveryRESTMapper(cached),
	}, nil
}

// Refresh forgets which kinds the cluster serves, after new ones were added.
func (c *Cluster) Refresh() {
	c.Discovery.Invalidate()
	c.mapper.Reset()
}
