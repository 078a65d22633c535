package redirect

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/ambit-mesh/ambit/bpf"
)

// A hook is a cgroup where a program stays without anybody who holds it, as at a site: by the kernel's older way, without a link.
type hook struct {
	path string
	kind ebpf.AttachType
}

// nodeHooks are where the node's programs run, permit first: no connection may be captured that nobody could deliver.
func nodeHooks(cgroup string) []struct {
	hook
	name string
} {
	return []struct {
		hook
		name string
	}{
		{hook{cgroup, ebpf.AttachCGroupSockOps}, bpf.PermitName},
		{hook{cgroup, ebpf.AttachCGroupInet4Connect}, bpf.Connect4Name},
		{hook{cgroup, ebpf.AttachCGroupInet6Connect}, bpf.Connect6Name},
	}
}

// allowMulti is BPF_F_ALLOW_MULTI: beside the programs of others.
const allowMulti = 1 << 1

// put has program run in place of those of its name that share a map with it: at no moment does none of them run. It tells
// whether there was anything to do.
func (h hook) put(program *ebpf.Program, name string, shared ebpf.MapID) (changed bool, err error) {
	id, err := idOf(program)
	if err != nil {
		return false, err
	}
	err = h.do(func(fd int) error {
		before, err := h.query(fd)
		if err != nil || slices.Contains(before, id) {
			return err
		}
		former, err := named(before, name, shared)
		defer closeAll(former)
		if err != nil {
			return err
		}
		options := link.RawAttachProgramOptions{Target: fd, Program: program, Attach: h.kind, Flags: allowMulti}
		for at, first := range former {
			options.Anchor = link.ReplaceProgram(first)
			delete(former, at)
			defer first.Close()
			break
		}
		if err := link.RawAttachProgram(options); err != nil {
			return err
		}
		changed = true
		return h.detach(fd, former)
	})
	if err != nil {
		return changed, fmt.Errorf("attach %s to cgroup %s: %w", name, h.path, err)
	}
	return changed, nil
}

// clear takes all programs of a name off that use a map. There need be none.
func (h hook) clear(name string, shared ebpf.MapID) error {
	err := h.do(func(fd int) error {
		ours, err := h.find(fd, name, shared)
		defer closeAll(ours)
		if err != nil {
			return err
		}
		return h.detach(fd, ours)
	})
	if err != nil {
		return fmt.Errorf("detach %s from cgroup %s: %w", name, h.path, err)
	}
	return nil
}

func (h hook) do(what func(fd int) error) error {
	dir, err := os.Open(h.path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return what(int(dir.Fd()))
}

func (h hook) query(fd int) ([]ebpf.ProgramID, error) {
	result, err := link.QueryPrograms(link.QueryOptions{Target: fd, Attach: h.kind})
	if err != nil {
		return nil, err
	}
	ids := make([]ebpf.ProgramID, len(result.Programs))
	for i, p := range result.Programs {
		ids[i] = p.ID
	}
	return ids, nil
}

// find opens the programs of a name that use a map; any, if shared is zero.
func (h hook) find(fd int, name string, shared ebpf.MapID) (map[int]*ebpf.Program, error) {
	ids, err := h.query(fd)
	if err != nil {
		return nil, err
	}
	return named(ids, name, shared)
}

func (h hook) detach(fd int, programs map[int]*ebpf.Program) error {
	for _, p := range programs {
		if err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: fd, Program: p, Attach: h.kind}); err != nil {
			return err
		}
	}
	return nil
}

// attach runs the node's programs, and tells whether one did not run that had.
func (r *Redirect) attach() (changed bool, err error) {
	programs := map[string]*ebpf.Program{
		bpf.PermitName: r.node.Permit, bpf.Connect4Name: r.node.Connect4, bpf.Connect6Name: r.node.Connect6,
	}
	for _, h := range nodeHooks(r.config.CgroupPath) {
		put, err := h.put(programs[h.name], h.name, r.node.ID())
		if err != nil {
			return changed, err
		}
		changed = changed || put
	}
	return changed, nil
}

// adoptAttached pins the maps of programs that an earlier process of this node attached, where the pins are lost.
func adoptAttached(config Config, hostCookie uint64) error {
	pinned, err := pinnedIDs(config.PinDir)
	if err != nil {
		return err
	}
	for _, h := range nodeHooks(config.CgroupPath) {
		if h.name != bpf.Connect4Name {
			continue
		}
		err := h.do(func(fd int) error {
			attached, err := h.find(fd, h.name, 0)
			defer closeAll(attached)
			if err != nil {
				return err
			}
			for _, p := range attached {
				if uses, err := usesAny(p, pinned); uses || err != nil {
					if err != nil {
						return err
					}
					continue
				}
				if err := bpf.Adopt(p, hostCookie, func(layout uint32) string { return layoutPins(config.PinDir, layout).maps() }); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("adopt what is attached to cgroup %s: %w", h.path, err)
		}
	}
	return nil
}

// pinnedIDs are the ids of the layouts whose pins are there.
func pinnedIDs(dir string) ([]ebpf.MapID, error) {
	layouts, err := filepath.Glob(filepath.Join(dir, "v*"))
	if err != nil {
		return nil, err
	}
	var ids []ebpf.MapID
	for _, l := range layouts {
		id, err := pins(l).id()
		if err != nil {
			return nil, err
		}
		if id != 0 {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func usesAny(program *ebpf.Program, ids []ebpf.MapID) (bool, error) {
	about, err := program.Info()
	if err != nil {
		return false, fmt.Errorf("read attached program: %w", err)
	}
	used, _ := about.MapIDs()
	return slices.ContainsFunc(used, func(id ebpf.MapID) bool { return slices.Contains(ids, id) }), nil
}
