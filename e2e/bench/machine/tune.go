package machine

import (
	"fmt"
	"os"

	"github.com/ambit-mesh/ambit/internal/topology"
)

// Congestion control of all pods. Where the machine's is bbr, which paces,
// connections within the machine are slower than with it, and not alike for all.
const Congestion = "cubic"

// sysctls of each pod, below /proc/sys/net.
var sysctls = []struct{ name, value string }{
	{"ipv4/tcp_congestion_control", Congestion},
	{"ipv4/ip_local_port_range", "1024 65535"},
	// New connections at a rate of thousands a second would run out of ports
	// that wait for stray packets.
	{"ipv4/tcp_tw_reuse", "1"},
	{"core/somaxconn", "4096"},
}

// Tune sets up a pod's network, before anything listens in it: a listener keeps
// the congestion control that it began with. The machine has to allow that one.
func Tune(pod *topology.NetNS) error {
	return pod.Do(func() error {
		for _, s := range sysctls {
			if err := os.WriteFile("/proc/sys/net/"+s.name, []byte(s.value), 0); err != nil {
				return fmt.Errorf("set %s: %w", s.name, err)
			}
		}
		return nil
	})
}
