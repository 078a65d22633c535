package main

import (
	"reflect"
	"strings"
	"testing"
)

func TestHierarchiesOfAHybridHost(t *testing.T) {
	got, err := parseHierarchies(strings.NewReader(`27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
42 31 0:38 / /elsewhere rw,relatime - cgroup2 cgroup2 rw
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []hierarchy{
		{mount: "/sys/fs/cgroup/cpu,cpuacct", options: "cpu,cpuacct"},
		{mount: "/sys/fs/cgroup/systemd", options: "none,xattr,name=systemd"},
		{mount: "/sys/fs/cgroup/unified", v2: true},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestHierarchyOfAUnifiedHost(t *testing.T) {
	got, err := parseHierarchies(strings.NewReader("35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"))
	if err != nil {
		t.Fatal(err)
	}
	if want := []hierarchy{{mount: "/sys/fs/cgroup", v2: true}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestHostWithoutCgroup2IsRefused(t *testing.T) {
	if _, err := parseHierarchies(strings.NewReader("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n")); err == nil {
		t.Error("no error")
	}
}
