package pods

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func addrs(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

func TestMatch(t *testing.T) {
	boot := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	before, after := boot.Add(-24*time.Hour), boot.Add(time.Minute)
	a := Namespace{Path: "/run/netns/a", Inode: 1, Created: boot, Addrs: addrs("10.0.0.1", "fd00::1")}
	b := Namespace{Path: "/run/netns/b", Inode: 2, Created: boot, Addrs: addrs("10.0.0.2")}
	twin := Namespace{Path: "/run/netns/twin", Inode: 3, Created: boot, Addrs: addrs("10.0.0.1")}
	for _, c := range []struct {
		name     string
		ips      []netip.Addr
		lastSeen time.Time
		claimed  map[string]bool
		all      []Namespace
		want     string // path; "" for none yet
		twice    bool
	}{
		{name: "its own", ips: addrs("10.0.0.1", "fd00::1"), lastSeen: after, all: []Namespace{a, b}, want: a.Path},
		{name: "a namespace with more addresses", ips: addrs("10.0.0.1"), lastSeen: after, all: []Namespace{a, b}, want: a.Path},
		{name: "a namespace with one address too few", ips: addrs("10.0.0.2", "fd00::2"), lastSeen: after, all: []Namespace{a, b}},
		{name: "none has it", ips: addrs("10.0.0.9"), lastSeen: after, all: []Namespace{a, b}},
		{name: "no addresses match nothing", lastSeen: after, all: []Namespace{a, {Path: "/run/netns/empty"}}},
		{name: "two have it", ips: addrs("10.0.0.1"), lastSeen: after, all: []Namespace{a, twin}, twice: true},
		{name: "two have it, one is another pod's", ips: addrs("10.0.0.1"), lastSeen: after, claimed: map[string]bool{twin.Path: true}, all: []Namespace{a, twin}, want: a.Path},
		{name: "the only one is another pod's", ips: addrs("10.0.0.1"), lastSeen: after, claimed: map[string]bool{a.Path: true}, all: []Namespace{a}},
		{name: "younger than what is known of the pod: another pod got its address", ips: addrs("10.0.0.1"), lastSeen: before, all: []Namespace{a}},
		{name: "made in the second that Kubernetes noted", ips: addrs("10.0.0.1"), lastSeen: boot.Add(-900 * time.Millisecond), all: []Namespace{a}, want: a.Path},
		{name: "nothing known of when the pod ran", ips: addrs("10.0.0.1"), all: []Namespace{a}, want: a.Path},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := match(c.ips, c.lastSeen, c.claimed, c.all)
			_, ambiguous := errors.AsType[*ambiguousError](err)
			if got.Path != c.want || ambiguous != c.twice || (c.want == "" && !c.twice && !errors.Is(err, errNoNamespace)) {
				t.Errorf("%q, %v; want %q", got.Path, err, c.want)
			}
		})
	}
}

func TestLastSeen(t *testing.T) {
	at := func(minute int) metav1.Time { return metav1.Date(2026, 1, 1, 12, minute, 0, 0, time.UTC) }
	running := func(minute int) corev1.ContainerState {
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at(minute)}}
	}
	ended := func(minute int) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: at(minute)}}
	}
	for _, c := range []struct {
		name   string
		status corev1.PodStatus
		want   time.Time
	}{
		{"nothing", corev1.PodStatus{}, time.Time{}},
		{"sandbox ready", corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue, LastTransitionTime: at(1)}}}, at(1).Time},
		{"sandbox lost", corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse, LastTransitionTime: at(1)}}}, time.Time{}},
		{"init container ended, another runs", corev1.PodStatus{
			InitContainerStatuses: []corev1.ContainerStatus{{State: ended(1)}}, ContainerStatuses: []corev1.ContainerStatus{{State: running(3)}, {State: running(2)}},
		}, at(3).Time},
		{"crashed before", corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{LastTerminationState: ended(4)}}}, at(4).Time},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := lastSeen(&corev1.Pod{Status: c.status}); !got.Equal(c.want) {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}
