package trial

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/e2e/faults/fault"
	"github.com/ambit-mesh/ambit/e2e/faults/orders"
)

// The pods of each namespace: first and near on one node, far on another. Those
// that are created during a fault are called newcomers.
const (
	first    = "first"
	near     = "near"
	far      = "far"
	newcomer = "new-"

	families = 2
)

// asks says whom a pod asks, by name and number of address families.
var asks = map[string]map[string]int{
	first: {far: families, near: 1},
	near:  {far: 1},
	far:   {first: families, near: 1},
}

// asksOf is asks also for newcomers.
func asksOf(pod string) map[string]int {
	if strings.HasPrefix(pod, newcomer) {
		return map[string]int{far: families, near: 1}
	}
	return asks[pod]
}

// targets are whom a pod asks, as far as they have addresses.
func (b *Bench) targets(who name, pods map[name]member) (all []orders.Target) {
	add := func(prefix, namespace, pod string, count int) {
		for _, ip := range firstOf(pods[name{namespace, pod}].ips, count) {
			all = append(all, orders.Target{Name: prefix + pod + family(ip), Address: netip.AddrPortFrom(ip, orders.Port).String()})
		}
	}
	for _, pod := range []string{first, near, far} {
		add("", who.namespace, pod, asksOf(who.pod)[pod])
	}
	if b.cast.modes[who.namespace] == Control && who.pod == far {
		for _, mode := range b.modes {
			add(stranger+mode+":", b.namespaces[mode], first, families)
		}
	}
	return all
}

func firstOf(ips []netip.Addr, count int) []netip.Addr { return ips[:min(count, len(ips))] }

func family(ip netip.Addr) string {
	if ip.Is4() {
		return "/4"
	}
	return "/6"
}

// pairs are all that shall be answered, of some modes.
func (b *Bench) pairs(modes ...string) (all []pair) {
	for who := range b.cast.now() {
		for _, mode := range modes {
			if b.cast.modes[who.namespace] != mode {
				continue
			}
			for pod, count := range asksOf(who.pod) {
				for i := range count {
					all = append(all, pair{who, pod + []string{"/4", "/6"}[i]})
				}
			}
		}
	}
	return all
}

// complete tells whether every pod of some modes is there, with its addresses.
func (b *Bench) complete(modes ...string) bool {
	found := map[string]int{}
	for who, m := range b.cast.now() {
		if len(m.ips) == families && m.ready {
			found[b.cast.modes[who.namespace]]++
		} else {
			found[b.cast.modes[who.namespace]] -= len(asks) // however many there are
		}
	}
	for _, mode := range modes {
		if found[mode] < len(asks)+b.added {
			return false
		}
	}
	return true
}

// order gives every pod its orders.
func (b *Bench) order() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	pods := b.cast.now()
	for who, m := range pods {
		if m.node == "" {
			continue
		}
		if err := b.giveLocked(who, m.node, pods); err != nil {
			return err
		}
	}
	return nil
}

// giveLocked writes a pod's orders where they changed.
func (b *Bench) giveLocked(who name, node string, pods map[name]member) error {
	o := orders.Orders{Targets: b.targets(who, pods)}
	if who.pod == first {
		for _, kind := range b.attack {
			one := orders.Attack{Kind: kind}
			for _, ip := range pods[name{who.namespace, far}].ips {
				one.Addresses = append(one.Addresses, netip.AddrPortFrom(ip, orders.Port).String())
			}
			o.Attacks = append(o.Attacks, one)
		}
	}
	text := fmt.Sprint(node, o)
	if b.given[who] == text {
		return nil
	}
	folder := b.lab.Bed.Machine(node).Disk(orders.Folder)
	if err := orders.Write(folder, who.namespace, who.pod, o); err != nil {
		return err
	}
	b.tales.follow(orders.Tale(folder, who.namespace, who.pod), who)
	b.given[who] = text
	return nil
}

// orderAttack has the first pod of each namespace attack the far one.
func (b *Bench) orderAttack(kinds []string) error {
	b.mu.Lock()
	b.attack = kinds
	b.mu.Unlock()
	return b.order()
}

// manifest is a pod of the trial.
func manifest(pod, node string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  serviceAccountName: %[1]s
  nodeSelector: {kubernetes.io/hostname: %[2]s}
  terminationGracePeriodSeconds: 1
  tolerations: [{operator: Exists}]
  volumes:
  - {name: orders, hostPath: {path: %[3]s, type: DirectoryOrCreate}}
  containers:
  - name: app
    image: ambit.mesh/shop:dev
    imagePullPolicy: IfNotPresent
    args: [peer]
    env:
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: LINGER, value: "0s"}
    volumeMounts:
    - {name: orders, mountPath: %[3]s}
    readinessProbe: {httpGet: {path: /healthz, port: %[4]d}, periodSeconds: 1}
    livenessProbe: {httpGet: {path: /healthz, port: %[4]d}, periodSeconds: 2, failureThreshold: 5}
    # What an attacker may have: a container's default rights include NET_RAW.
    securityContext: {capabilities: {add: [NET_ADMIN, NET_RAW]}}
`, pod, node, orders.Folder, orders.HealthPort)
}

// standing are the pods of every namespace.
func standing() string {
	return manifest(first, fault.Node) + manifest(near, fault.Node) + manifest(far, fault.Other)
}
