package main

import (
	"context"
	"path/filepath"
)

// runControlPlane starts what every cluster has once.
func (a *agent) runControlPlane(ctx context.Context) error {
	const group = "system"
	if err := a.start(ctx, service{"etcd", group, etcdArgs()}); err != nil {
		return err
	}
	if err := a.start(ctx, service{"kube-apiserver", group, apiServerArgs(a.machine)}); err != nil {
		return err
	}
	if err := a.waitForAPI(ctx, "admin"); err != nil {
		return err
	}
	if err := a.start(ctx, service{"kube-controller-manager", group, controllerManagerArgs()}); err != nil {
		return err
	}
	if err := a.start(ctx, service{"kube-scheduler", group, schedulerArgs()}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

const etcdClient = "http://127.0.0.1:2379"

func etcdArgs() []string {
	return []string{"etcd",
		"--name=cp",
		"--data-dir=/var/lib/etcd",
		"--listen-client-urls=" + etcdClient,
		"--advertise-client-urls=" + etcdClient,
		"--listen-peer-urls=http://127.0.0.1:2380",
		// A power cut of ours kills processes, not the host: what was written
		// is in its page cache.
		"--unsafe-no-fsync",
		"--log-level=warn",
	}
}

func configFile(name string) string { return filepath.Join(machineConfig, name) }

func apiServerArgs(m machine) []string {
	return []string{"kube-apiserver",
		"--advertise-address=" + m.address4().String(),
		"--bind-address=::",
		"--secure-port=6443",
		"--etcd-servers=" + etcdClient,
		"--service-cluster-ip-range=" + serviceCIDRs,
		"--client-ca-file=" + configFile("ca.crt"),
		"--tls-cert-file=" + configFile("apiserver.crt"),
		"--tls-private-key-file=" + configFile("apiserver.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + configFile("service-account.pub"),
		"--service-account-signing-key-file=" + configFile("service-account.key"),
		"--kubelet-certificate-authority=" + configFile("ca.crt"),
		"--kubelet-client-certificate=" + configFile("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + configFile("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		// No kube-proxy runs here: webhooks and extension servers are reached
		// at their pods' addresses.
		"--enable-aggregator-routing=true",
		"--requestheader-client-ca-file=" + configFile("front-proxy-ca.crt"),
		"--requestheader-allowed-names=" + frontProxyClient.user,
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + configFile("front-proxy-client.crt"),
		"--proxy-client-key-file=" + configFile("front-proxy-client.key"),
	}
}

func controllerManagerArgs() []string {
	kubeconfig := configFile("controller-manager.kubeconfig")
	return []string{"kube-controller-manager",
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--leader-elect=false",
		"--use-service-account-credentials=true",
		"--service-account-private-key-file=" + configFile("service-account.key"),
		"--root-ca-file=" + configFile("ca.crt"),
		"--cluster-signing-cert-file=" + configFile("ca.crt"),
		"--cluster-signing-key-file=" + configFile("ca.key"),
		// Pod ranges follow from the plan, not from the order of arrival.
		"--allocate-node-cidrs=false",
		// A node that is off shall be seen as such within a test's patience.
		"--node-monitor-grace-period=20s",
		"--node-monitor-period=2s",
	}
}

func schedulerArgs() []string {
	kubeconfig := configFile("scheduler.kubeconfig")
	return []string{"kube-scheduler",
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--leader-elect=false",
	}
}
