package redirect

import (
	"fmt"
	"slices"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/sockdiag"
)

// findKubelet has the node's programs know the kubelet: whoever listens at its port in the node's network, by the cgroup that the
// socket was made in. Where nobody does, the one that was known last stays.
func (r *Redirect) findKubelet() error {
	var sockets []sockdiag.Socket
	err := r.host.Do(func() (err error) {
		sockets, err = sockdiag.List(sockdiag.Listening)
		return err
	})
	if err != nil {
		return fmt.Errorf("find the kubelet: %w", err)
	}
	var cgroups []uint64
	for _, s := range sockets {
		if s.Local.Port() == r.config.KubeletPort && s.Cgroup != 0 {
			cgroups = append(cgroups, s.Cgroup)
		}
	}
	slices.Sort(cgroups)
	cgroups = slices.Compact(cgroups)
	if len(cgroups) == 0 {
		return r.kubeletMissing()
	}
	if len(cgroups) > bpf.MaxKubelets {
		return fmt.Errorf("find the kubelet: processes of %d cgroups listen at port %d, %d at most", len(cgroups), r.config.KubeletPort, bpf.MaxKubelets)
	}
	return r.node.SetKubelets(cgroups)
}

func (r *Redirect) kubeletMissing() error {
	known, err := r.node.Kubelets()
	if err != nil {
		return err
	}
	detail := "None was known before: its probes go through ztunnel, as anybody's connections, and fail in strict pods."
	if len(known) > 0 {
		detail = "Whoever is in the cgroup where it was last seen still passes the listeners of captured pods."
	}
	return &Problem{
		Code:   KubeletMissing,
		Detail: fmt.Sprintf("No process of the node listens at the kubelet's port %d. %s", r.config.KubeletPort, detail),
		Fix:    "Start the kubelet; if it serves at another port, set KUBELET_PORT in ztunnel's DaemonSet.",
	}
}
