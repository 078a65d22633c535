package simulated

import (
	"context"
	"os"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	Isolate()
	os.Exit(m.Run())
}

func TestUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	start := time.Now()
	mesh, err := Start(ctx, Config{Nodes: []string{"a", "b"}, Pods: []Pod{{Name: "client", Node: "a"}, {Name: "server", Node: "b", Port: 8080}}, Logs: "/tmp/simlogs"})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("started", time.Since(start))
	defer func() {
		if err := mesh.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := mesh.WaitCaptured(ctx); err != nil {
		t.Fatal(err)
	}
	t.Log("captured", time.Since(start))
}
