package install

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/deploy"
)

func node(kubelet string, labels map[string]string) corev1.Node {
	return corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Status:     corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{KubeletVersion: kubelet}},
	}
}

func TestFoldersFollowTheDistribution(t *testing.T) {
	for name, c := range map[string]struct {
		node   corev1.Node
		binDir string
	}{
		"plain":     {node("v1.37.2", nil), "/opt/cni/bin"},
		"k3s":       {node("v1.37.2+k3s1", nil), "/var/lib/rancher/k3s/data/cni"},
		"GKE":       {node("v1.37.2-gke.100", nil), "/home/kubernetes/bin"},
		"MicroK8s":  {node("v1.37.2", map[string]string{"microk8s.io/cluster": "true"}), "/var/snap/microk8s/current/opt/cni/bin"},
		"OpenShift": {node("v1.37.2", map[string]string{"node.openshift.io/os_id": "rhel"}), "/var/lib/cni/bin"},
	} {
		if got := detect([]corev1.Node{c.node}).binDir; got != c.binDir {
			t.Errorf("%s: plug-ins in %s, want %s", name, got, c.binDir)
		}
	}
}

func TestFoldersThatWereGivenAreKept(t *testing.T) {
	got := fill(deploy.Values{CNIBinDir: "/mine"}, "/found/bin", "/found/conf")
	if got.CNIBinDir != "/mine" || got.CNIConfDir != "/found/conf" {
		t.Errorf("folders %s and %s, want /mine and /found/conf", got.CNIBinDir, got.CNIConfDir)
	}
}
