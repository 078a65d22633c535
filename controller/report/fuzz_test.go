package report

import (
	"log/slog"
	"testing"

	"google.golang.org/protobuf/proto"
	"k8s.io/client-go/kubernetes/fake"

	reportapi "github.com/ambit-mesh/ambit/api/report"
)

// FuzzReport: whatever a node says, what is remembered of it is bounded, is about
// pods that may be its own, and is gone when it says so.
func FuzzReport(f *testing.F) {
	for _, m := range []*reportapi.NodeReport{
		workload(stateOf(reportapi.CaptureState_CAPTURED)), workload(stateOf(reportapi.CaptureState_WITHDRAWING)),
		workload(&reportapi.WorkloadState{Namespace: "shop", Name: "pay", Uid: "uid-pay"}), heartbeat(), complete(), hello("n1", "z"),
	} {
		content, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content, content)
	}
	quiet := slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, first, second []byte) {
		registry := NewRegistry(RegistryConfig{
			Acks: &push{acked: map[string]uint64{}}, Tunnels: &tunnels{}, Leases: fake.NewClientset().CoordinationV1().Leases(system), Logger: quiet,
		})
		server := NewServer(ServerConfig{Registry: registry, Pods: places{uid: "n1", "uid-pay": "n2"}, SystemNamespace: system, Logger: quiet})
		s := registry.open("n1", &reportapi.Hello{Node: "n1", PodName: "ztunnel-n1"})
		for _, content := range [][]byte{first, second} {
			message := new(reportapi.NodeReport)
			if proto.Unmarshal(content, message) != nil {
				continue
			}
			server.take(s, message, quiet)
			w := message.GetWorkload()
			if _, known := registry.Observed("n1", "uid-pay"); known && w.GetNamespace() == "shop" && w.GetName() == "pay" {
				t.Fatal("a node speaks of another's pod")
			}
		}
		n := registry.nodes["n1"]
		for uid, o := range n.observed {
			if uid == "" || o.Pod.Namespace == "" || o.Pod.Name == "" || len(uid)+len(o.Pod.Namespace)+len(o.Pod.Name) > 3*maxNameBytes ||
				len(o.Reason) > maxTextBytes || len(o.ConfigVersion) > maxTextBytes {
				t.Fatalf("remembered: %+v", o)
			}
		}
		if len(n.problems) > maxProblems {
			t.Fatalf("%d problems", len(n.problems))
		}
		for uid := range n.observed {
			pod := n.observed[uid].Pod
			server.take(s, workload(&reportapi.WorkloadState{Namespace: pod.Namespace, Name: pod.Name, Uid: string(uid), Removed: true}), quiet)
		}
		if len(n.observed)+len(n.withdrawals) > 0 {
			t.Fatal("something is left of pods that are gone")
		}
	})
}
