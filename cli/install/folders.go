package install

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/deploy"
)

// distribution is a packaging of Kubernetes with CNI folders of its own.
type distribution struct {
	name    string
	matches func(corev1.Node) bool
	binDir  string
	confDir string
}

func kubeletSays(part string) func(corev1.Node) bool {
	return func(n corev1.Node) bool { return strings.Contains(n.Status.NodeInfo.KubeletVersion, part) }
}

func labelled(key string) func(corev1.Node) bool {
	return func(n corev1.Node) bool { _, ok := n.Labels[key]; return ok }
}

// distributions whose folders are not the usual ones; the first match wins.
var distributions = []distribution{
	{"k3s", kubeletSays("+k3s"), "/var/lib/rancher/k3s/data/cni", "/var/lib/rancher/k3s/agent/etc/cni/net.d"},
	{"MicroK8s", labelled("microk8s.io/cluster"), "/var/snap/microk8s/current/opt/cni/bin", "/var/snap/microk8s/current/args/cni-network"},
	{"OpenShift", labelled("node.openshift.io/os_id"), "/var/lib/cni/bin", "/etc/cni/multus/net.d"},
	{"GKE", kubeletSays("-gke."), "/home/kubernetes/bin", "/etc/cni/net.d"},
}

const (
	usualBinDir  = "/opt/cni/bin"
	usualConfDir = "/etc/cni/net.d"
)

func usualFolders(values deploy.Values) deploy.Values {
	return fill(values, usualBinDir, usualConfDir)
}

// fill sets the folders that were not given.
func fill(values deploy.Values, binDir, confDir string) deploy.Values {
	if values.CNIBinDir == "" {
		values.CNIBinDir = binDir
	}
	if values.CNIConfDir == "" {
		values.CNIConfDir = confDir
	}
	return values
}

// withFolders finds the CNI folders from what the nodes say of themselves.
func withFolders(ctx context.Context, cluster *kube.Cluster, values deploy.Values) (deploy.Values, string, error) {
	nodes, err := cluster.Typed.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return values, "", fmt.Errorf("list nodes: %w", err)
	}
	if len(nodes.Items) == 0 {
		return values, "", fmt.Errorf("list nodes: the cluster has none")
	}
	d := detect(nodes.Items)
	return fill(values, d.binDir, d.confDir), d.name, nil
}

func detect(nodes []corev1.Node) distribution {
	for _, d := range distributions {
		for _, node := range nodes {
			if d.matches(node) {
				return d
			}
		}
	}
	return distribution{name: "usual folders", binDir: usualBinDir, confDir: usualConfDir}
}

// WithFolders returns the values with the CNI folders that the nodes have.
func WithFolders(ctx context.Context, cluster *kube.Cluster, values deploy.Values) (deploy.Values, error) {
	values, _, err := withFolders(ctx, cluster, values)
	return values, err
}
