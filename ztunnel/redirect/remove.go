package redirect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/ambit-mesh/ambit/bpf"
	"github.com/ambit-mesh/ambit/ztunnel/podns"
)

// remove ends all of one layout: first whatever pods send leaves them, then what they connect to goes past ztunnel, then what
// connects to them, then the node's programs end, and last the guards that let everything pass by now.
func (p pins) remove(cgroup string, namespaces []*podns.NetNS) error {
	for _, name := range []string{guardsMap, egressMap, enrolledMap} {
		if err := p.withdrawAll(name); err != nil {
			return err
		}
	}
	uids, err := p.uids()
	if err != nil {
		return err
	}
	for _, uid := range uids {
		if err := p.removePod(uid); err != nil {
			return err
		}
	}
	if err := p.detachAttached(cgroup, namespaces); err != nil {
		return err
	}
	if err := detachAll(p.links()); err != nil {
		return fmt.Errorf("remove pins of the node: %w", err)
	}
	if err := os.RemoveAll(string(p)); err != nil {
		return fmt.Errorf("remove pins: %w", err)
	}
	return nil
}

// detachAttached takes off what stays without a link: the programs that use this layout's maps.
func (p pins) detachAttached(cgroup string, namespaces []*podns.NetNS) error {
	id, err := p.id()
	if err != nil || id == 0 {
		return err
	}
	for _, h := range nodeHooks(cgroup) {
		if err := h.clear(h.name, id); err != nil {
			return err
		}
	}
	for _, netns := range namespaces {
		if err := clearGuards(netns, id); err != nil {
			return err
		}
	}
	return nil
}

// id is the kernel's number of the map that all programs of a layout use; zero: there is none.
func (p pins) id() (ebpf.MapID, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.maps(), verdictsMap), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("load %s of %s: %w", verdictsMap, p, err)
	}
	defer m.Close()
	about, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("read %s of %s: %w", verdictsMap, p, err)
	}
	id, _ := about.ID()
	return id, nil
}

// clearGuards takes the guards off the devices of a namespace, in whichever direction they look.
func clearGuards(netns *podns.NetNS, id ebpf.MapID) error {
	var devices []netlink.Link
	err := netns.Do(func() (err error) {
		devices, err = netlink.LinkList()
		return err
	})
	if err != nil {
		return fmt.Errorf("list devices of network namespace %s: %w", netns.Path(), err)
	}
	for _, d := range devices {
		for _, ingress := range []bool{false, true} {
			s := site{netns: netns, index: d.Attrs().Index, ingress: ingress}
			if err := s.clear(bpf.GuardName, id); err != nil {
				return err
			}
		}
	}
	return nil
}

// Remove takes off everything that redirects on this node, of any layout, and lets all pods go, even from a ztunnel that still
// runs. Established connections stay; those that a ztunnel carries are its own. What stays attached where it cannot look (a
// namespace that is not in NetNSDir) lets everything pass.
func Remove(config Config) error {
	config, err := config.withDefaults()
	if err != nil {
		return fmt.Errorf("remove redirection: %w", err)
	}
	namespaces, errs := openNamespaces(config)
	defer func() {
		for _, n := range namespaces {
			n.Close()
		}
	}()
	if len(errs) == 0 { // the first is the node's
		_ = prepareBPFFS(config) // of which there is no need if nothing is attached
		errs = append(errs, adoptAttached(config, namespaces[0].Cookie()))
	}
	errs = append(errs, removePins(config, namespaces))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove redirection: %w", err)
	}
	return nil
}

// openNamespaces opens the node's, and those of its pods.
func openNamespaces(config Config) (namespaces []*podns.NetNS, errs []error) {
	paths := []string{config.HostNetNS}
	candidates, err := podns.Scan(config.NetNSDir)
	if err != nil {
		errs = append(errs, err)
	}
	for _, c := range candidates {
		paths = append(paths, c.Path)
	}
	for i, path := range paths {
		netns, err := podns.Open(path)
		if err == nil {
			namespaces = append(namespaces, netns)
		} else if i == 0 || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, podns.ErrNotNetNS) { // a pod's may end meanwhile
			errs = append(errs, err)
		}
	}
	return namespaces, errs
}

func removePins(config Config, namespaces []*podns.NetNS) error {
	entries, err := os.ReadDir(config.PinDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list pins: %w", err)
	}
	for _, e := range entries {
		if err := pins(filepath.Join(config.PinDir, e.Name())).remove(config.CgroupPath, namespaces); err != nil {
			return err
		}
	}
	if err := os.Remove(config.PinDir); err != nil {
		return fmt.Errorf("remove folder for pins: %w", err)
	}
	return nil
}
