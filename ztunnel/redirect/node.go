package redirect

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

// FindCgroup2 returns where the cgroup2 hierarchy is mounted, by its file system type, reading a file in the format of
// /proc/self/mountinfo. In a container with a cgroup namespace of its own the node's hierarchy may be there beside the
// container's part of it: the mount that begins nearest to the hierarchy's root wins.
func FindCgroup2(mountinfo string) (string, error) {
	file, err := os.Open(mountinfo)
	if err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	defer file.Close()
	best, bestRoot := "", ""
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// proc(5): ID parent device root mountpoint options [tags] - type source superoptions
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) == 0 || kind[0] != "cgroup2" {
			continue
		}
		if root := fields[3]; best == "" || nearerRoot(root, bestRoot) {
			best, bestRoot = unescape(fields[4]), root
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("find cgroup2: %w", err)
	}
	if best == "" {
		return "", cgroup2Missing("No cgroup2 hierarchy is mounted.", nil)
	}
	return best, nil
}

// nearerRoot tells whether cgroup a is nearer to the hierarchy's root than b, both as seen from the reader's cgroup
// namespace: /../.. is two levels above its root, /a one below.
func nearerRoot(a, b string) bool {
	depth := func(path string) (d int) {
		for part := range strings.SplitSeq(path, "/") {
			switch part {
			case "":
			case "..":
				d--
			default:
				d++
			}
		}
		return d
	}
	return depth(a) < depth(b)
}

// unescape undoes the kernel's octal escapes of white space in mount points.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

func cgroup2Missing(detail string, err error) *Problem {
	return &Problem{
		Code:   Cgroup2Missing,
		Detail: detail,
		Fix:    "Mount the cgroup2 hierarchy on the node (mount -t cgroup2 none /sys/fs/cgroup/unified beside version 1), and the node's cgroup folder into ztunnel.",
		Err:    err,
	}
}

func checkCgroup2(path string) error {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return cgroup2Missing(fmt.Sprintf("The cgroup2 folder %s cannot be read.", path), err)
	}
	if stat.Type != unix.CGROUP2_SUPER_MAGIC {
		return cgroup2Missing(fmt.Sprintf("The folder %s is not of a cgroup2 hierarchy.", path), nil)
	}
	return nil
}

// prepareBPFFS is checkBPFFS, and mends what it can.
func prepareBPFFS(config Config) error {
	err := checkBPFFS(config.PinDir)
	if err == nil || !config.MountBPFFS {
		return err
	}
	if mountErr := unix.Mount("bpf", filepath.Dir(config.PinDir), "bpf", 0, "mode=0700"); mountErr != nil {
		return errors.Join(err, fmt.Errorf("mount a BPF file system: %w", mountErr))
	}
	return checkBPFFS(config.PinDir)
}

// checkBPFFS demands that dir is, or can be made, in a BPF file system.
func checkBPFFS(dir string) error {
	missing := func(detail string, err error) error {
		return &Problem{
			Code:   BPFFSMissing,
			Detail: detail,
			Fix:    "Mount a BPF file system on the node (mount -t bpf bpf /sys/fs/bpf), and that folder into ztunnel.",
			Err:    err,
		}
	}
	existing := dir
	var stat unix.Statfs_t
	for {
		err := unix.Statfs(existing, &stat)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || existing == filepath.Dir(existing) {
			return missing(fmt.Sprintf("The folder %s cannot be read.", existing), err)
		}
		existing = filepath.Dir(existing)
	}
	if uint32(stat.Type) != unix.BPF_FS_MAGIC {
		return missing(fmt.Sprintf("The folder %s for pins is not in a BPF file system.", dir), nil)
	}
	return nil
}

// checkKernel asks the kernel for the program types that redirection stands on.
func checkKernel(probe func(ebpf.ProgramType) error) error {
	for _, need := range []struct {
		kind  ebpf.ProgramType
		since string
	}{
		{ebpf.SkLookup, "5.9"},
		{ebpf.CGroupSockAddr, "4.17"},
		{ebpf.SockOps, "4.13"},
	} {
		err := probe(need.kind)
		switch {
		case err == nil:
		case errors.Is(err, ebpf.ErrNotSupported):
			return &Problem{
				Code:   SkLookupMissing,
				Detail: fmt.Sprintf("The kernel does not have BPF programs of type %s, which Linux has since %s.", need.kind, need.since),
				Fix:    "Run this node on Linux 5.15 or newer with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_INET.",
				Err:    err,
			}
		case errors.Is(err, unix.EPERM):
			return capabilityMissing("The kernel does not let ztunnel load BPF programs.", err)
		default:
			return fmt.Errorf("probe the kernel for %s programs: %w", need.kind, err)
		}
	}
	return nil
}

func capabilityMissing(detail string, err error) *Problem {
	return &Problem{
		Code:   CapabilityMissing,
		Detail: detail,
		Fix:    "Give ztunnel's container the capabilities NET_ADMIN, NET_RAW and SYS_ADMIN, and let no security profile withhold bpf(2) or setns(2).",
		Err:    err,
	}
}

// explain turns a refusal by the kernel into the Problem that it is.
func explain(detail string, err error) error {
	if err == nil || !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return err
	}
	return capabilityMissing(detail, err)
}

// findHost finds the network namespace of the node, whose connections pass the listeners of its pods, and the cgroups of the
// pods that share it.
func findHost(netns, cgroup string) (_ *podns.NetNS, _ bpf.Host, err error) {
	host, err := podns.Open(netns)
	if err != nil {
		return nil, bpf.Host{}, &Problem{
			Code:   HostNetNSMissing,
			Detail: fmt.Sprintf("The node's network namespace cannot be opened at %s.", netns),
			Fix:    "Mount the node's /proc/1/ns/net into ztunnel as a hostPath, or give its container SYS_PTRACE and the node's /proc.",
			Err:    err,
		}
	}
	defer func() {
		if err != nil {
			host.Close()
		}
	}()
	ids, err := podCgroups(cgroup, podCgroupDepth)
	if err != nil {
		return nil, bpf.Host{}, fmt.Errorf("find the cgroup of pods: %w", err)
	}
	if len(ids) > bpf.MaxPodCgroups {
		return nil, bpf.Host{}, fmt.Errorf("find the cgroup of pods: %d below %s, %d at most", len(ids), cgroup, bpf.MaxPodCgroups)
	}
	return host, bpf.Host{Cookie: host.Cookie(), Layout: layout, PodCgroups: ids}, nil
}

// podCgroupDepth is how far below the node's root a kubelet may have been told to put its pods: by --cgroup-root, commonly one
// level.
const podCgroupDepth = 3

// podCgroups returns the ids of the cgroups in which kubelets put all pods: kubepods, or by systemd's rules kubepods.slice,
// PARENT-kubepods.slice. Where only cgroup version 1 has them there is none.
func podCgroups(dir string, depth int) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // ended meanwhile
	}
	if err != nil {
		return nil, err
	}
	var ids []uint64
	for _, e := range entries {
		path, name := filepath.Join(dir, e.Name()), e.Name()
		switch {
		case !e.IsDir():
		case name == "kubepods" || name == "kubepods.slice" || strings.HasSuffix(name, "-kubepods.slice"):
			var stat unix.Stat_t
			if err := unix.Stat(path, &stat); err != nil {
				return nil, fmt.Errorf("stat %s: %w", path, err)
			}
			ids = append(ids, stat.Ino)
		case depth > 1:
			below, err := podCgroups(path, depth-1)
			if err != nil {
				return nil, err
			}
			ids = append(ids, below...)
		}
	}
	return ids, nil
}
