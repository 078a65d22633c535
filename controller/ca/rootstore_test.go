package ca

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

const system = "ambit-system"

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func newStore(client *fake.Clientset) *RootStore {
	return NewRootStore(RootStoreConfig{
		Client: client, Namespace: system, TrustDomain: trustDomain, Logger: quiet(), Registerer: prometheus.NewRegistry(),
		Now: func() time.Time { return start },
	})
}

func secretOf(root *Root) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: SecretName}, Type: corev1.SecretTypeTLS, Data: stored(root)}
}

func configMapOf(pem string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: ConfigMapName},
		Data:       map[string]string{ConfigMapKey: pem},
	}
}

// secret returns the Secret's fields as they are in the cluster, nil without one.
func secret(t *testing.T, client *fake.Clientset) map[string][]byte {
	t.Helper()
	s, err := client.CoreV1().Secrets(system).Get(t.Context(), SecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.Data
}

func deleteSecret(t *testing.T, client *fake.Clientset) {
	t.Helper()
	if err := client.CoreV1().Secrets(system).Delete(t.Context(), SecretName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func same(a, b map[string][]byte) bool {
	return maps.EqualFunc(a, b, func(x, y []byte) bool { return string(x) == string(y) })
}

// open opens a store that has to have a root at once.
func open(t *testing.T, s *RootStore) *Root {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), openRetry/2)
	defer cancel()
	root, err := s.Open(ctx)
	if err != nil {
		t.Fatalf("open: %v, problem: %v", err, s.Problem())
	}
	return root
}

// code returns the code of a problem, empty for none.
func code(err error) Code {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p.Code
	}
	return ""
}

func TestRootIsCreatedOnceAndReadAfterwards(t *testing.T) {
	client := fake.NewClientset()
	first := newStore(client)
	if first.Problem() == nil {
		t.Error("a store that has read nothing says that all is well")
	}
	root := open(t, first)
	if first.Problem() != nil {
		t.Error(first.Problem())
	}
	after := secret(t, client)
	if again := open(t, newStore(client)); !again.cert.Equal(root.cert) {
		t.Error("the second start has another root")
	}
	if !same(after, secret(t, client)) {
		t.Error("the second start wrote the Secret")
	}
	s, err := client.CoreV1().Secrets(system).Get(t.Context(), SecretName, metav1.GetOptions{})
	if err != nil || s.Type != corev1.SecretTypeTLS {
		t.Errorf("the Secret's type is %q, %v", s.Type, err)
	}
}

func TestReplicaThatCreatesTooLateTakesTheirs(t *testing.T) {
	theirs := testRoot(t)
	client := fake.NewClientset()
	client.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		// Between our look and our write the other one was there.
		if err := client.Tracker().Add(secretOf(theirs)); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Error(err)
		}
		return false, nil, nil
	})
	if root := open(t, newStore(client)); !root.cert.Equal(theirs.cert) {
		t.Error("two replicas have two roots")
	}
	if !same(secret(t, client), stored(theirs)) {
		t.Error("their Secret was overwritten")
	}
}

func TestReplicaThatSeesTheConfigMapFirstDoesNotCryLost(t *testing.T) {
	theirs := testRoot(t)
	client := fake.NewClientset()
	client.PrependReactor("get", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		_ = client.Tracker().Add(secretOf(theirs))
		return true, configMapOf(theirs.PEM()), nil
	})
	if root := open(t, newStore(client)); !root.cert.Equal(theirs.cert) {
		t.Error("not the root of the other replica")
	}
}

func TestUnusableSecretIsReportedAndLeftAlone(t *testing.T) {
	good, other := testRoot(t), testRoot(t)
	for title, c := range map[string]struct {
		data  map[string][]byte
		code  Code
		field string
	}{
		"empty":         {map[string][]byte{}, RootMalformed, "tls.crt"},
		"malformed":     {map[string][]byte{"tls.crt": []byte("x"), "tls.key": good.keyPEM}, RootMalformed, "tls.crt"},
		"another's key": {map[string][]byte{"tls.crt": good.certPEM, "tls.key": other.keyPEM}, RootKeyMismatch, "tls.key"},
	} {
		t.Run(title, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				broken := secretOf(good)
				broken.Data = c.data
				client := fake.NewClientset(broken)
				store := newStore(client)
				ctx, cancel := context.WithTimeout(t.Context(), 10*openRetry)
				defer cancel()
				if root, err := store.Open(ctx); root != nil || err == nil {
					t.Fatalf("opened with %v, %v", root, err)
				}
				if code(store.Problem()) != c.code {
					t.Errorf("problem %v, want %s", store.Problem(), c.code)
				}
				for _, part := range []string{"Secret ambit-system/ambit-ca", c.field, "restore the Secret"} {
					if !strings.Contains(store.Problem().Error(), part) {
						t.Errorf("%q is not in: %v", part, store.Problem())
					}
				}
				if got := testutil.ToFloat64(store.problem.WithLabelValues(string(c.code))); got != 1 {
					t.Errorf("metric is %v", got)
				}
				if !same(secret(t, client), c.data) {
					t.Error("the Secret was overwritten")
				}
			})
		})
	}
}

func TestRepairedSecretOpensTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := testRoot(t)
		broken := secretOf(root)
		broken.Data = nil
		client := fake.NewClientset(broken)
		store := newStore(client)
		time.AfterFunc(time.Minute, func() {
			if err := client.Tracker().Update(corev1.SchemeGroupVersion.WithResource("secrets"), secretOf(root), system); err != nil {
				t.Error(err)
			}
		})
		opened, err := store.Open(t.Context())
		if err != nil || !opened.cert.Equal(root.cert) || store.Problem() != nil {
			t.Errorf("%v, %v, %v", opened, err, store.Problem())
		}
	})
}

func TestLostRootIsNotReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := testRoot(t)
		client := fake.NewClientset(configMapOf(lost.PEM()))
		store := newStore(client)
		opened := make(chan *Root)
		go func() {
			root, err := store.Open(t.Context())
			if err != nil {
				t.Error(err)
			}
			opened <- root
		}()
		time.Sleep(5 * openRetry)
		synctest.Wait()
		if code(store.Problem()) != RootLost {
			t.Errorf("problem %v, want RootLost", store.Problem())
		}
		for _, part := range []string{"Secret ambit-system/ambit-ca", "ConfigMap ambit-system/ambit-ca-root", "restore", "delete the ConfigMap"} {
			if !strings.Contains(store.Problem().Error(), part) {
				t.Errorf("%q is not in: %v", part, store.Problem())
			}
		}
		if secret(t, client) != nil {
			t.Fatal("a new root was made")
		}
		// Whoever deletes the ConfigMap accepts a new root.
		if err := client.CoreV1().ConfigMaps(system).Delete(t.Context(), ConfigMapName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if root := <-opened; root == nil || root.cert.Equal(lost.cert) || !same(secret(t, client), stored(root)) {
			t.Error("no new root after the ConfigMap was deleted")
		}
	})
}

func TestConfigMapWithoutARootIsNoObstacle(t *testing.T) {
	open(t, newStore(fake.NewClientset(configMapOf(""))))
}

func TestUnreadableSecretMakesNoRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(corev1.Resource("secrets"), SecretName, errors.New("no permission"))
		})
		client.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			t.Error("a root was written by who could not look for one")
			return false, nil, nil
		})
		store := newStore(client)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := store.Open(ctx); err == nil || code(store.Problem()) != RootUnreadable {
			t.Errorf("%v, problem %v", err, store.Problem())
		}
	})
}

// running opens a store and runs it, in the test's bubble.
func running(t *testing.T, client *fake.Clientset) (*RootStore, *Root) {
	t.Helper()
	store := newStore(client)
	root := open(t, store)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- store.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
	return store, root
}

func look() {
	time.Sleep(lookInterval + time.Second)
	synctest.Wait()
}

func TestSecretLostWhileRunningIsPutBackAsItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		store, _ := running(t, client)
		before := secret(t, client)
		deleteSecret(t, client)
		look()
		if !same(secret(t, client), before) {
			t.Error("the root that came back is another one")
		}
		if store.Problem() != nil {
			t.Error(store.Problem())
		}
	})
}

func TestSecretThatCannotBePutBackIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		store, root := running(t, client)
		var refuse atomic.Bool
		refuse.Store(true)
		client.PrependReactor("create", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			return refuse.Load(), nil, apierrors.NewForbidden(corev1.Resource("secrets"), SecretName, errors.New("quota"))
		})
		deleteSecret(t, client)
		look()
		if code(store.Problem()) != RootMissing || !strings.Contains(store.Problem().Error(), "do not restart") {
			t.Errorf("problem %v, want RootMissing", store.Problem())
		}
		// What is in memory goes on.
		if store.loaded() != root {
			t.Error("the root in use changed")
		}
		refuse.Store(false)
		look()
		if store.Problem() != nil || !same(secret(t, client), stored(root)) {
			t.Errorf("problem %v after it could be put back", store.Problem())
		}
	})
}

func TestSecretReplacedWhileRunningIsReportedAndLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		store, root := running(t, client)
		other := testRoot(t)
		if _, err := client.CoreV1().Secrets(system).Update(t.Context(), secretOf(other), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		look()
		if code(store.Problem()) != RootChanged {
			t.Errorf("problem %v, want RootChanged", store.Problem())
		}
		if store.loaded() != root || !same(secret(t, client), stored(other)) {
			t.Error("a root was exchanged")
		}
	})
}
