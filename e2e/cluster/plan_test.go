package main

import (
	"net/netip"
	"testing"
)

func TestEveryAddressIsGivenOnce(t *testing.T) {
	seen := map[netip.Addr]string{}
	claim := func(owner string, address netip.Addr) {
		t.Helper()
		if other, taken := seen[address]; taken {
			t.Errorf("%s and %s both have %s", owner, other, address)
		}
		seen[address] = owner
	}
	claim("gateway", netip.MustParseAddr(gateway4))
	claim("gateway", netip.MustParseAddr(gateway6))
	for _, m := range machines() {
		claim(m.name, m.address4())
		claim(m.name, m.address6())
	}
}

func TestPodRangesLieInTheClusterRangeAndApart(t *testing.T) {
	cluster4, cluster6 := netip.MustParsePrefix(clusterCIDR4), netip.MustParsePrefix(clusterCIDR6)
	var all []netip.Prefix
	for _, n := range nodes() {
		for _, prefix := range []netip.Prefix{n.podCIDR4(), n.podCIDR6()} {
			if !cluster4.Contains(prefix.Addr()) && !cluster6.Contains(prefix.Addr()) {
				t.Errorf("%s of %s lies outside the cluster's ranges", prefix, n.name)
			}
			for _, other := range all {
				if prefix.Overlaps(other) {
					t.Errorf("%s overlaps %s", prefix, other)
				}
			}
			all = append(all, prefix)
		}
	}
}

func TestAddressesLookAlikeInBothFamilies(t *testing.T) {
	n2, err := findMachine("n2")
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		n2.address4().String():        "172.30.0.12",
		n2.address6().String():        "fd00:172:30::12",
		n2.podCIDR4().String():        "10.244.2.0/24",
		n2.podCIDR6().String():        "fd00:10:244:2::/64",
		n2.hardwareAddress().String(): "02:00:ac:1e:00:0c",
		apiServer():                   "https://172.30.0.1:6443",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestZonesHaveTwoNodesAndOne(t *testing.T) {
	count := map[string]int{}
	for _, n := range nodes() {
		count[n.zone()]++
	}
	if count["lab-a"] != 2 || count["lab-b"] != 1 {
		t.Errorf("zones %v, want two nodes in lab-a and one in lab-b", count)
	}
}

func TestUnknownMachineIsRefused(t *testing.T) {
	if _, err := findMachine("n9"); err == nil {
		t.Error("n9 was found")
	}
}
