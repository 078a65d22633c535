package fault

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

func ofCluster() []Fault {
	return []Fault{
		{
			Name:    "daemonset-deleted",
			What:    "Somebody deletes the DaemonSet of ztunnel.",
			How:     "kubectl delete, its pods with it, 2 s of grace; the cause goes with ambit install.",
			Inject:  deleteDaemonSet,
			Heal:    install,
			Hold:    5 * time.Second,
			NewPods: true,
		},
		{
			Name: "ztunnel-upgrade",
			What: "ztunnel of every node is replaced by a newer one.",
			How:  "kubectl rollout restart; in force until the newer ones are ready on every node. The former ones carry what was open, for longer than is measured.",
			Inject: func(ctx context.Context, l *Lab) error {
				return l.system(ctx, "rollout", "restart", "daemonset/"+ztunnel)
			},
			Until: func(ctx context.Context, l *Lab) error {
				return testbed.Eventually(ctx, settle, l.ztunnelsReady)
			},
		},
		{
			Name:   "node-power-cut",
			What:   "A node loses its power, and all that is not on its disk.",
			How:    "Its cable and then all its processes go at once (cluster power-off); the cause goes with cluster power-on.",
			Inject: powerOff(Node),
			Heal:   powerOn(Node),
			Hold:   2 * time.Second,
		},
		{
			Name:    "controller-down",
			What:    "There is no controller.",
			How:     "The Deployment is scaled to 0; new pods are created meanwhile.",
			Inject:  func(ctx context.Context, l *Lab) error { return l.stopController(ctx) },
			Heal:    func(ctx context.Context, l *Lab) error { return l.startController(ctx) },
			NewPods: true,
			Hold:    5 * time.Second,
		},
		{
			Name:   "apiserver-down",
			What:   "There is no API server.",
			How:    "The machine of the control plane loses its power; meanwhile a pod's sandbox dies, and the kubelet makes another.",
			Inject: cutControlPlane,
			Heal:   powerOn("cp"),
			Hold:   6 * time.Second,
		},
	}
}

func deleteDaemonSet(ctx context.Context, l *Lab) error {
	if err := l.system(ctx, "delete", "daemonset", ztunnel, "--cascade=orphan"); err != nil {
		return err
	}
	return l.system(ctx, "delete", "pods", "-l", "app=ztunnel", "--grace-period=2", "--wait")
}

// install returns when ztunnel is ready: nobody may kill it any more.
func install(ctx context.Context, l *Lab) error {
	l.spare()
	_, err := l.Bed.Run(ctx, "ambit", "install")
	return err
}

func powerOff(machine string) func(context.Context, *Lab) error {
	return func(ctx context.Context, l *Lab) error {
		_, err := l.Bed.Run(ctx, "cluster", "power-off", machine)
		return err
	}
}

func powerOn(machine string) func(context.Context, *Lab) error {
	return func(ctx context.Context, l *Lab) error {
		_, err := l.Bed.Run(ctx, "cluster", "power-on", machine)
		return err
	}
}

func (l *Lab) stopController(ctx context.Context) error {
	replicas, err := l.Bed.Kubectl(ctx, "-n", System, "get", "deployment", controller, "-o", "jsonpath={.spec.replicas}")
	if err != nil {
		return err
	}
	l.replicas = strings.TrimSpace(replicas)
	if err := l.system(ctx, "scale", "deployment/"+controller, "--replicas=0"); err != nil {
		return err
	}
	return testbed.Eventually(ctx, settle, func(context.Context) error {
		for _, node := range []string{"n1", "n2", "n3"} {
			left, err := l.Bed.Machine(node).Processes(controller)
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("the controller still runs on %s", node)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (l *Lab) startController(ctx context.Context) error {
	return l.system(ctx, "scale", "deployment/"+controller, "--replicas=2")
}

// cutControlPlane cuts its power, and then kills the sandbox of a pod of each
// namespace.
func cutControlPlane(ctx context.Context, l *Lab) error {
	uids := map[string]bool{}
	for _, namespace := range l.Namespaces {
		uid, err := l.podUID(ctx, namespace, l.Restarted)
		if err != nil {
			return err
		}
		uids[uid] = true
	}
	if err := powerOff("cp")(ctx, l); err != nil {
		return err
	}
	sandboxes, err := l.Bed.Machine(Node).Processes("pause")
	if err != nil {
		return err
	}
	killed := 0
	for _, p := range sandboxes {
		for uid := range uids {
			if strings.Contains(p.Cgroup, uid) || strings.Contains(p.Cgroup, strings.ReplaceAll(uid, "-", "_")) {
				if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
					return fmt.Errorf("kill sandbox: %w", err)
				}
				killed++
			}
		}
	}
	if killed != len(uids) {
		return fmt.Errorf("%d sandboxes killed, want %d", killed, len(uids))
	}
	return nil
}
