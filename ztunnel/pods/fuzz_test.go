package pods

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// noNamespaces is a node on which no path leads to a network namespace.
type noNamespaces struct{ Namespaces }

func (noNamespaces) Inode(path string) (uint64, error) {
	return 7, nil
}

// FuzzCNIRequest: whatever comes on the CNI socket, what is taken for a sandbox
// has addresses, and a network namespace in the folder of those and nowhere else.
func FuzzCNIRequest(f *testing.F) {
	f.Add([]byte(`{"namespace":"shop","name":"cart-0","uid":"u","containerID":"c","netns":"/run/netns/cni-1","addresses":["10.0.0.5","fd00::5"]}`))
	f.Add([]byte(`{"netns":"/var/run/netns/../../etc/passwd","addresses":["::ffff:10.0.0.5"]}`))
	f.Add([]byte(`{"netns":"/run/netns/..","addresses":["fe80::1%eth0"]} trailing`))
	f.Add(bytes.Repeat([]byte(`{"a":`), 1000))
	f.Fuzz(func(t *testing.T, body []byte) {
		p := &Pods{config: Config{NetNSDir: "/host/netns", Namespaces: noNamespaces{}}}
		var add cniproto.AddRequest
		if err := decode(httptest.NewRequest(http.MethodPost, cniproto.PathAdd, bytes.NewReader(body)), &add); err != nil {
			asRefusal(err)
			return
		}
		sandbox, err := p.sandboxOf(add)
		if err != nil {
			return
		}
		name, inside := strings.CutPrefix(sandbox.Path, "/host/netns/")
		if !inside || name == "" || name != filepath.Base(name) || name == ".." {
			t.Fatalf("network namespace %q from %q", sandbox.Path, add.NetNS)
		}
		for _, ip := range sandbox.IPs {
			if !ip.IsValid() || ip.Is4In6() {
				t.Fatalf("address %v", ip)
			}
		}
		if len(sandbox.IPs) == 0 {
			t.Fatal("a sandbox without an address")
		}
	})
}
