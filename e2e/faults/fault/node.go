package fault

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

const (
	cniConf   = "/etc/cni/net.d"
	cniBinary = "/opt/cni/bin/ambit-cni"
	// aside is where things are moved to: a folder that neither containerd nor
	// ztunnel looks into.
	aside = "/var/lib/ambit-faults/aside"
	state = "/var/lib/ambit"
)

func ofNode() []Fault {
	return []Fault{
		{
			Name: "cni-conf-removed", Quick: true,
			What:    "A node's CNI configuration is gone.",
			How:     "The files of " + cniConf + " are moved away, and back; new pods are created meanwhile.",
			Inject:  onNode("mkdir -p " + aside + "; mv " + cniConf + "/*list " + aside),
			Heal:    onNode("mv " + aside + "/*list " + cniConf),
			NewPods: true,
		},
		{
			Name:    "cni-conf-overwritten",
			What:    "A node's CNI configuration is written anew by the CNI's own installer, which knows nothing of Ambit.",
			How:     "The chain is written without Ambit's plugin, as the installer left it; new pods are created at once. The cause goes by itself, when ztunnel has put the plugin back.",
			Inject:  overwriteChain,
			NewPods: true,
		},
		{
			Name:   "cni-binary-missing",
			What:   "The CNI plugin's binary is gone from a node.",
			How:    cniBinary + " is moved away; new pods are created at once. The cause goes by itself, when ztunnel has put it back; with ztunnel killed, by moving it back.",
			Open:   "nothing, but a node can lock itself out: a pod of ztunnel that has to be made anew meanwhile is made by the chain that lacks the plugin, and waits until somebody puts it back.",
			Inject: onNode("mkdir -p " + aside + "; mv " + cniBinary + " " + aside),
			// Whether ztunnel has done it or not.
			HealKilled: onNode("mv " + aside + "/ambit-cni " + cniBinary),
			Restore:    onNode("if [ -e " + aside + "/ambit-cni ]; then mv " + aside + "/ambit-cni " + cniBinary + "; fi"),
			NewPods:    true,
		},
		{
			Name:   "bpffs-unmounted",
			What:   "The file system that holds the pins of what captures is gone from a node.",
			How:    "umount -l /sys/fs/bpf in the node's mount namespace, which reaches ztunnel's container; the cause goes with mounting a new, empty one.",
			Inject: onNode("umount -l /sys/fs/bpf"),
			Heal:   onNode("mount -t bpf -o mode=700 bpf /sys/fs/bpf"),
		},
		{
			Name:    "disk-full",
			What:    "ztunnel's folder on a node has no room left.",
			How:     "The folder is a tmpfs of 2 MiB, and filled; new pods are created meanwhile.",
			Prepare: smallDisk,
			Inject:  onNode("cat /dev/zero > " + state + "/filler 2>/dev/null || test -s " + state + "/filler"),
			Heal:    onNode("rm " + state + "/filler"),
			Restore: ordinaryDisk,
			NewPods: true,
			Hold:    5 * time.Second,
		},
	}
}

// doubles are faults of two things at once.
func doubles() []Fault {
	return []Fault{{
		Name: "cni-conf-overwritten+node-power-cut", Leaks: true,
		What: "A node's CNI configuration is overwritten while ztunnel is dead, and then the node loses its power.",
		How:  "As for each of the two. Nothing pinned is left, and the kubelet starts pods by a chain without the gate, perhaps before ztunnel.",
		Open: "between the start of a pod and that of ztunnel the pod is not captured: a configuration that others own and wrote is all that the node boots with. `ambit check` shows a node whose chain lacks the plugin.",
		Inject: func(ctx context.Context, l *Lab) error {
			if err := l.KeepDead(Node); err != nil {
				return err
			}
			if err := overwriteChain(ctx, l); err != nil {
				return err
			}
			return powerOff(Node)(ctx, l)
		},
		Heal: func(ctx context.Context, l *Lab) error {
			if err := powerOn(Node)(ctx, l); err != nil {
				return err
			}
			return l.Revive(ctx)
		},
		Hold: time.Second,
	}}
}

func onNode(script string) func(context.Context, *Lab) error {
	return func(ctx context.Context, l *Lab) error { return l.shell(ctx, script) }
}

// overwriteChain writes the chain as it was before Ambit came.
func overwriteChain(ctx context.Context, l *Lab) error {
	machine := l.Bed.Machine(Node)
	name, err := machine.Shell(ctx, "ls "+cniConf+"/*.conflist | head -n1")
	if err != nil {
		return err
	}
	name = strings.TrimSpace(name)
	content, err := machine.Exec(ctx, "cat", name)
	if err != nil {
		return err
	}
	plain, err := withoutAmbit([]byte(content))
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	encoded := base64.StdEncoding.EncodeToString(plain)
	return l.shell(ctx, fmt.Sprintf("echo %s | base64 -d > %s.new; mv %s.new %s", encoded, name, name, name))
}

func withoutAmbit(chain []byte) ([]byte, error) {
	var list map[string]any
	if err := json.Unmarshal(chain, &list); err != nil {
		return nil, err
	}
	all, _ := list["plugins"].([]any)
	var others []any
	for _, plugin := range all {
		if entry, ok := plugin.(map[string]any); !ok || entry["type"] != "ambit-cni" {
			others = append(others, plugin)
		}
	}
	if len(others) == len(all) {
		return nil, fmt.Errorf("the chain has no ambit-cni: there is nothing to lose")
	}
	list["plugins"] = others
	return json.MarshalIndent(list, "", "  ")
}

// smallDisk puts a small file system where ztunnel's folder is, with what was in
// it, and has a new ztunnel find it.
func smallDisk(ctx context.Context, l *Lab) error {
	err := l.shell(ctx, fmt.Sprintf("cp -a %[1]s /run/ambit-aside; mount -t tmpfs -o size=2m tmpfs %[1]s; cp -a /run/ambit-aside/. %[1]s; rm -r /run/ambit-aside", state))
	if err != nil {
		return err
	}
	if err := l.renew(ctx, Node); err != nil {
		return err
	}
	return l.Settle(ctx)
}

func ordinaryDisk(ctx context.Context, l *Lab) error {
	if err := l.shell(ctx, "umount -l "+state); err != nil {
		return err
	}
	if err := l.renew(ctx, Node); err != nil {
		return err
	}
	return l.Settle(ctx)
}
