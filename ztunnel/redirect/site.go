package redirect

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

// A site is one direction of one device, where a program stays without anybody who holds it: neither the end of the process nor
// the loss of the BPF file system takes it off. It is the kernel's older way: by tcx without a link, or before Linux 6.6 a filter
// of clsact.
type site struct {
	netns   *podns.NetNS
	index   int  // of the device
	ingress bool // what comes in by it; else what goes out
}

// errDisplaced: a program that was first is no longer, and what comes before it may answer in its place.
var errDisplaced = errors.New("another program was put before it")

// filterHandle tells the filter of a site from those of others at the same priority.
const filterHandle = 0xa3b17

func (s site) kind() ebpf.AttachType {
	if s.ingress {
		return ebpf.AttachTCXIngress
	}
	return ebpf.AttachTCXEgress
}

// put has program run first, in place of those of its name that share a map with it: at no moment does none of them run. It tells
// whether there was anything to do.
func (s site) put(program *ebpf.Program, name string, shared ebpf.MapID, withoutTCX bool) (changed bool, err error) {
	id, err := idOf(program)
	if err != nil {
		return false, err
	}
	err = s.netns.Do(func() error {
		if withoutTCX {
			changed, err = s.putFilter(program, id, name)
			return err
		}
		before, err := s.query()
		if errors.Is(err, ebpf.ErrNotSupported) {
			changed, err = s.putFilter(program, id, name)
			return err
		}
		if err != nil {
			return err
		}
		if len(before) > 0 && before[0] == id {
			return nil
		}
		if slices.Contains(before, id) {
			return errDisplaced
		}
		changed = true
		return s.putFirst(program, before, name, shared)
	})
	if err != nil {
		return changed, fmt.Errorf("attach %s to %s: %w", name, s, err)
	}
	return changed, nil
}

func (s site) String() string {
	direction := "egress"
	if s.ingress {
		direction = "ingress"
	}
	return fmt.Sprintf("%s of device %d in %s", direction, s.index, s.netns.Path())
}

func idOf(program *ebpf.Program) (ebpf.ProgramID, error) {
	about, err := program.Info()
	if err != nil {
		return 0, fmt.Errorf("read program: %w", err)
	}
	id, ok := about.ID()
	if !ok {
		return 0, errors.New("read program: the kernel tells no id")
	}
	return id, nil
}

// query returns what is attached by tcx, in order.
func (s site) query() ([]ebpf.ProgramID, error) {
	result, err := link.QueryPrograms(link.QueryOptions{Target: s.index, Attach: s.kind()})
	if errors.Is(err, unix.EINVAL) {
		return nil, ebpf.ErrNotSupported
	}
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // nothing has been attached yet
	}
	if err != nil {
		return nil, err
	}
	ids := make([]ebpf.ProgramID, len(result.Programs))
	for i, p := range result.Programs {
		ids[i] = p.ID
	}
	return ids, nil
}

func (s site) putFirst(program *ebpf.Program, before []ebpf.ProgramID, name string, shared ebpf.MapID) error {
	former, err := named(before, name, shared)
	defer closeAll(former)
	if err != nil {
		return err
	}
	anchor := link.Head()
	if first, ok := former[0]; ok {
		anchor = link.ReplaceProgram(first)
		delete(former, 0)
		defer first.Close()
	}
	err = link.RawAttachProgram(link.RawAttachProgramOptions{Target: s.index, Program: program, Attach: s.kind(), Anchor: anchor})
	if err != nil {
		return err
	}
	return s.detach(former)
}

// named opens those of the programs that bear a name and use a map, by their places in the list. A shared of zero is any map.
func named(ids []ebpf.ProgramID, name string, shared ebpf.MapID) (map[int]*ebpf.Program, error) {
	found := map[int]*ebpf.Program{}
	for i, id := range ids {
		program, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, unix.ENOENT) {
			continue // ended meanwhile
		}
		if err != nil {
			return found, fmt.Errorf("open attached program: %w", err)
		}
		about, err := program.Info()
		if err != nil {
			program.Close()
			return found, fmt.Errorf("read attached program: %w", err)
		}
		used, _ := about.MapIDs()
		if about.Name != name || shared != 0 && !slices.Contains(used, shared) {
			program.Close()
			continue
		}
		found[i] = program
	}
	return found, nil
}

func closeAll(programs map[int]*ebpf.Program) {
	for _, p := range programs {
		p.Close()
	}
}

func (s site) detach(programs map[int]*ebpf.Program) error {
	for _, p := range programs {
		err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: s.index, Program: p, Attach: s.kind()})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// clear takes all programs of a name off that use a map; any map, if shared is zero. There need be none.
func (s site) clear(name string, shared ebpf.MapID) error {
	err := s.netns.Do(func() error {
		if err := s.clearFilter(name); err != nil {
			return err
		}
		attached, err := s.query()
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		ours, err := named(attached, name, shared)
		defer closeAll(ours)
		if err != nil {
			return err
		}
		return s.detach(ours)
	})
	if err != nil {
		return fmt.Errorf("detach %s from %s: %w", name, s, err)
	}
	return nil
}

func (s site) filter() netlink.FilterAttrs {
	parent := uint32(netlink.HANDLE_MIN_EGRESS)
	if s.ingress {
		parent = netlink.HANDLE_MIN_INGRESS
	}
	return netlink.FilterAttrs{LinkIndex: s.index, Parent: parent, Handle: filterHandle, Priority: 1, Protocol: unix.ETH_P_ALL}
}

func (s site) putFilter(program *ebpf.Program, id ebpf.ProgramID, name string) (changed bool, err error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, err
	}
	defer handle.Close()
	there, err := s.findFilter(handle)
	if err != nil || there != nil && there.Id == int(id) {
		return false, err
	}
	clsact := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: s.index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := handle.QdiscAdd(clsact); err != nil && !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("add clsact: %w", err)
	}
	err = handle.FilterReplace(&netlink.BpfFilter{FilterAttrs: s.filter(), Fd: program.FD(), Name: name, DirectAction: true})
	return err == nil, err
}

// findFilter returns nil if there is none.
func (s site) findFilter(handle *netlink.Handle) (*netlink.BpfFilter, error) {
	device, err := handle.LinkByIndex(s.index)
	if err != nil {
		return nil, err
	}
	want := s.filter()
	filters, err := handle.FilterList(device, want.Parent)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	for _, f := range filters {
		if ours, ok := f.(*netlink.BpfFilter); ok && ours.Handle == want.Handle && ours.Priority == want.Priority {
			return ours, nil
		}
	}
	return nil, nil
}

func (s site) clearFilter(name string) error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	there, err := s.findFilter(handle)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil
	}
	if err != nil || there == nil {
		return err
	}
	if err := handle.FilterDel(&netlink.BpfFilter{FilterAttrs: s.filter(), Name: name}); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}
