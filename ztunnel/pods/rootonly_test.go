package pods

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"

	"github.com/ambit-mesh/ambit/ztunnel/kube/kubetest"
	"github.com/ambit-mesh/ambit/ztunnel/rootonly/rootonlytest"
)

// TestCNISocketIsForRoot: another user who gets as far as connecting is not served.
func TestCNISocketIsForRoot(t *testing.T) {
	path := filepath.Join(rootonlytest.Dir(t), "cni.sock")
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		if err := New(Config{Client: kubetest.Client{Interface: fake.NewClientset()}, Logger: slog.New(slog.DiscardHandler)}).ServeCNI(ctx, path); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); group.Wait() })
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody listens")
		}
	}
	rootonlytest.ServesRoot(t, path, "GET / HTTP/1.0\r\n\r\n")
}
