package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
)

// status shows what is on, and what Kubernetes makes of it.
func (c *cluster) status(ctx context.Context) error {
	known := map[string]node{}
	if port, ok := c.doorPort(); ok {
		if server, err := newAPI(fmt.Sprintf("https://127.0.0.1:%d", port), c.pki(), "admin"); err == nil {
			if list, err := server.nodes(ctx); err == nil {
				for _, n := range list {
					known[n.Metadata.Name] = n
				}
			} else {
				fmt.Fprintln(c.out, "API server:", err)
			}
		}
	}
	table := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MACHINE\tPOWER\tPID\tREADY\tKUBELET\tADDRESSES\tPODS")
	for _, m := range machines() {
		power, pid, ready, kubelet, pods := "off", "-", "-", "-", "-"
		if number, on := initPID(c.layout, m); on {
			power, pid = "on", fmt.Sprint(number)
		}
		if n, ok := known[m.name]; ok {
			ready, kubelet = fmt.Sprint(n.ready()), n.Status.NodeInfo.KubeletVersion
		}
		if m.isNode() {
			pods = m.podCIDR4().String() + " " + m.podCIDR6().String()
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s %s\t%s\n", m.name, power, pid, ready, kubelet, m.address4(), m.address6(), pods)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return c.listForwarders()
}

func (c *cluster) listForwarders() error {
	all, err := readHierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		if !h.v2 {
			continue
		}
		groups, err := os.ReadDir(filepath.Join(h.mount, c.cgroup(), "forward"))
		if err != nil {
			continue // none was ever started
		}
		for _, group := range groups {
			if f, ok := runningForwarder(filepath.Join(c.cgroup(), "forward", group.Name())); ok {
				fmt.Fprintf(c.out, "%s -> %s in %s\n", f.Local, f.Target, f.Netns)
			}
		}
	}
	return nil
}
