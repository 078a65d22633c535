package trial

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// cast is who is where.
type cast struct {
	client *kubernetes.Clientset
	// modes by namespace.
	modes map[string]string

	mu sync.Mutex
	// pods that there are now; ever is every address that a pod of a mode had since
	// forget, since a packet may be of one that is gone. reused are those that pods of
	// other namespaces had. Guarded by mu.
	pods   map[name]member
	ever   map[string]map[netip.Addr]bool
	reused map[netip.Addr]bool
}

// member is a pod.
type member struct {
	node  string
	ips   []netip.Addr
	ready bool
}

const castPoll = 300 * time.Millisecond

func newCast(kubeconfig string, namespaces map[string]string) (*cast, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	config.Timeout = 2 * time.Second // the API server is one of those that die
	config.QPS, config.Burst = 50, 100
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("reach the cluster: %w", err)
	}
	c := &cast{client: client, modes: map[string]string{}, pods: map[name]member{}, ever: map[string]map[netip.Addr]bool{}, reused: map[netip.Addr]bool{}}
	for mode, namespace := range namespaces {
		c.modes[namespace] = mode
		c.ever[mode] = map[netip.Addr]bool{}
	}
	return c, nil
}

// look asks the API server once. What it does not say stays as it was.
func (c *cast) look(ctx context.Context) error {
	list, err := c.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	pods := map[name]member{}
	var others []netip.Addr
	for _, pod := range list.Items {
		_, ours := c.modes[pod.Namespace]
		switch {
		case ours && pod.DeletionTimestamp == nil:
			pods[name{pod.Namespace, pod.Name}] = memberOf(&pod)
		case !ours && !pod.Spec.HostNetwork:
			others = append(others, memberOf(&pod).ips...)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pods = pods
	for _, ip := range others {
		c.reused[ip] = true
	}
	for who, m := range pods {
		for _, ip := range m.ips {
			c.ever[c.modes[who.namespace]][ip] = true
		}
	}
	return nil
}

func memberOf(pod *corev1.Pod) member {
	m := member{node: pod.Spec.NodeName}
	for _, ip := range pod.Status.PodIPs {
		if address, err := netip.ParseAddr(ip.IP); err == nil {
			m.ips = append(m.ips, address)
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			m.ready = true
		}
	}
	return m
}

func (c *cast) now() map[name]member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.pods)
}

// forget leaves the addresses that pods have now: those of pods that are gone are
// given to others in time, ztunnel's pod among them.
func (c *cast) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ips := range c.ever {
		clear(ips)
	}
	clear(c.reused) // the next look finds them
	for who, m := range c.pods {
		for _, ip := range m.ips {
			c.ever[c.modes[who.namespace]][ip] = true
		}
	}
}

// addresses are all that pods of a mode had.
func (c *cast) addresses(mode string) map[netip.Addr]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.ever[mode])
}

// others are the addresses that pods outside of the trial had.
func (c *cast) others() map[netip.Addr]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.reused)
}

// names are the pods of a mode.
func (c *cast) names(mode string) map[name]bool {
	names := map[name]bool{}
	for who := range c.now() {
		if c.modes[who.namespace] == mode {
			names[who] = true
		}
	}
	return names
}
