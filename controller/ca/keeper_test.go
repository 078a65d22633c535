package ca

import (
	"context"
	"crypto/elliptic"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// nodes are data planes whose word a test gives.
type nodes struct {
	waiting []string
	used    map[string]bool
}

func (n *nodes) Waiting(Bundle) (waiting, away []string)   { return slices.Clone(n.waiting), nil }
func (n *nodes) Used(fingerprint string, _ time.Time) bool { return n.used[fingerprint] }

// court is a controller's authority over a cluster.
type court struct {
	client    *fake.Clientset
	nodes     *nodes
	root      *RootStore
	authority *Authority
	keeper    *Keeper
}

func newCourt(client *fake.Clientset, n *nodes) *court {
	c := &court{client: client, nodes: n, root: newStore(client)}
	c.authority = NewAuthority(AuthorityConfig{TrustDomain: trustDomain, SystemNamespace: system, Logger: quiet(), Now: func() time.Time { return start.Add(time.Since(epoch)) }})
	c.keeper = NewKeeper(KeeperConfig{
		Client: client, Namespace: system, TrustDomain: trustDomain, Root: c.root, Authority: c.authority, Nodes: n, Logger: quiet(),
		Now: func() time.Time { return start.Add(time.Since(epoch)) },
	})
	return c
}

// epoch is when a synctest bubble begins.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// lead opens and leads until the returned function is called.
func (c *court) lead(t *testing.T) (resign func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	opening, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	if err := c.keeper.Open(opening); err != nil {
		t.Fatal(err, c.keeper.Problem())
	}
	ended := make(chan error, 1)
	go func() { ended <- c.keeper.RunLeader(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func (c *court) phases() (all []string) {
	for _, r := range c.keeper.Status().Roots {
		all = append(all, r.Phase)
	}
	return all
}

// ask sets the annotation, as the command does.
func (c *court) ask(t *testing.T, what string) {
	t.Helper()
	secrets := c.client.CoreV1().Secrets(system)
	s, err := secrets.Get(t.Context(), StateSecretName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	s.Annotations[RotateAnnotation+what] = "asked"
	if _, err := secrets.Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (c *court) configMap(t *testing.T) map[string]string {
	t.Helper()
	m, err := c.client.CoreV1().ConfigMaps(system).Get(t.Context(), ConfigMapName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return m.Data
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

const aStep = keepInterval + time.Second

func TestRootIsRotatedOnlyAsFastAsNodesFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCourt(fake.NewClientset(), &nodes{used: map[string]bool{}})
		resign := c.lead(t)
		before, rootBefore := c.keeper.Status(), secret(t, c.client)
		if before.Problem != nil || !slices.Equal(c.phases(), []string{"Signing"}) {
			t.Fatalf("%+v", before)
		}
		c.nodes.waiting, c.nodes.used[before.Roots[0].Fingerprint] = []string{"n1"}, true
		c.ask(t, RotateRoot)
		pass(aStep)
		if !slices.Equal(c.phases(), []string{"Signing", "Announced"}) {
			t.Fatalf("after the request: %v", c.phases())
		}
		if got := len(c.authority.Bundle().Roots); got != 2 {
			t.Errorf("%d roots are pushed", got)
		}
		if got := c.configMap(t)[ConfigMapKey]; strings.Count(got, "BEGIN CERTIFICATE") != 2 {
			t.Errorf("the ConfigMap has not both roots: %q", got)
		}
		pass(time.Hour)
		if s := c.keeper.Status(); s.Issuer != before.Issuer || !slices.Contains(s.Waiting, "n1") {
			t.Errorf("signed before n1 acknowledged: %+v", s)
		}

		// Another controller goes on where this one stopped.
		resign()
		c = newCourt(c.client, c.nodes)
		resign = c.lead(t)
		defer resign()
		if !slices.Equal(c.phases(), []string{"Signing", "Announced"}) || c.keeper.Status().Issuer != before.Issuer {
			t.Fatalf("the successor began anew: %+v", c.keeper.Status())
		}
		c.nodes.waiting = nil
		pass(aStep)
		after := c.keeper.Status()
		if !slices.Equal(c.phases(), []string{"Retiring", "Signing"}) || after.Issuer.Root == before.Issuer.Root {
			t.Fatalf("after the acknowledgement: %+v", after)
		}
		if got := c.authority.Bundle().Retiring; !slices.Equal(got, []string{before.Roots[0].Fingerprint}) {
			t.Errorf("nodes are not told what retires: %v", got)
		}
		if now := secret(t, c.client); same(now, rootBefore) || Fingerprint(parsePEM(t, string(now["tls.crt"]))) != after.Issuer.Root {
			t.Error("the Secret does not hold the successor")
		}
		pass(time.Hour)
		if len(c.phases()) != 2 {
			t.Error("the former root left while a leaf below it is about")
		}
		c.nodes.used = nil
		pass(aStep)
		if !slices.Equal(c.phases(), []string{"Signing"}) {
			t.Errorf("at the end: %v", c.phases())
		}
		if got := c.configMap(t)[ConfigMapKey]; strings.Count(got, "BEGIN CERTIFICATE") != 1 {
			t.Error("the ConfigMap has the former root still")
		}
	})
}

// While a root waits for nodes, another intermediate signs when it is asked for, and the
// root's rotation goes on; asked for at one time, neither is lost.
func TestIntermediateIsRotatedDuringARotationOfTheRoot(t *testing.T) {
	for title, ask := range map[string]func(*testing.T, *court){
		"later": func(t *testing.T, c *court) {
			c.ask(t, RotateRoot)
			pass(aStep)
			c.ask(t, RotateIntermediate)
		},
		"together": func(t *testing.T, c *court) {
			c.ask(t, RotateRoot)
			c.ask(t, RotateIntermediate)
		},
	} {
		t.Run(title, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCourt(fake.NewClientset(), &nodes{waiting: []string{"n1"}, used: map[string]bool{}})
				defer c.lead(t)()
				first := c.keeper.Status()
				c.nodes.used[first.Roots[0].Fingerprint] = true
				ask(t, c)
				pass(2 * aStep)
				second := c.keeper.Status()
				if !slices.Equal(c.phases(), []string{"Signing", "Announced"}) {
					t.Fatalf("the root's rotation: %v", c.phases())
				}
				if second.Issuer.Serial == first.Issuer.Serial || second.Issuer.Root != first.Issuer.Root {
					t.Errorf("the intermediate is %+v, as before, or of another root", second.Issuer)
				}
				request := csr(t, ecKey(t, elliptic.P256()), requestFor(t, cart.String()))
				if chain, _, err := c.authority.Issue(cart, request, 0); err != nil {
					t.Error(err)
				} else if got := parsePEM(t, chain[1]).SerialNumber.Text(16); got != second.Issuer.Serial {
					t.Errorf("%s signs, not %s", got, second.Issuer.Serial)
				}
				c.nodes.waiting = nil
				pass(aStep)
				third := c.keeper.Status()
				if !slices.Equal(c.phases(), []string{"Retiring", "Signing"}) || third.Issuer.Root == second.Issuer.Root {
					t.Errorf("after the acknowledgement: %v, %+v", c.phases(), third.Issuer)
				}
				pass(aStep)
				if c.keeper.Status().Issuer != third.Issuer {
					t.Error("rotated again, unasked")
				}
			})
		})
	}
}

func TestIntermediateIsRotatedBeforeItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCourt(fake.NewClientset(), &nodes{})
		defer c.lead(t)()
		first := c.keeper.Status().Issuer
		c.ask(t, RotateIntermediate)
		pass(aStep)
		second := c.keeper.Status().Issuer
		if second.Serial == first.Serial || second.Root != first.Root {
			t.Errorf("asked for: %+v", second)
		}
		if s, _ := c.client.CoreV1().Secrets(system).Get(t.Context(), StateSecretName, metav1.GetOptions{}); len(s.Annotations) != 0 {
			t.Error("the request was not taken off")
		}
		pass(aStep)
		if c.keeper.Status().Issuer != second {
			t.Error("rotated again, unasked")
		}
		// The fake API server is slow in a bubble of months: the state machine is asked.
		k := c.keeper
		k.cfg.Now = func() time.Time { return second.NotAfter.Add(-issuerLifetime / 4) }
		pass(aStep)
		if c.keeper.Status().Issuer == second {
			t.Error("not rotated in the last third of its life")
		}
	})
}

func TestBadPluginNeverReplacesWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCourt(fake.NewClientset(), &nodes{})
		resign := c.lead(t)
		own := c.keeper.Status().Issuer
		data := plugged(t, nil)
		bad := maps.Clone(data)
		bad[PluginKeyKey] = plugged(t, nil)[PluginKeyKey]
		plugin := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: PluginSecretName}, Data: bad}
		secrets := c.client.CoreV1().Secrets(system)
		if _, err := secrets.Create(t.Context(), plugin, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		pass(aStep)
		s := c.keeper.Status()
		if s.Issuer != own || code(c.keeper.Problem()) != PluginInvalid {
			t.Fatalf("%+v, %v", s, c.keeper.Problem())
		}
		for _, part := range []string{"Secret ambit-system/ambit-ca-plugin", "ca-key.pem"} {
			if !strings.Contains(c.keeper.Problem().Error(), part) || !strings.Contains(c.configMap(t)[StatusKey], part) {
				t.Errorf("%q is not in %v, or not in the status", part, c.keeper.Problem())
			}
		}
		plugin.Data = data
		if _, err := secrets.Update(t.Context(), plugin, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		pass(3 * aStep)
		if s = c.keeper.Status(); s.Issuer.Origin != "plug-in" || s.Problem != nil {
			t.Fatalf("the good one is not in use: %+v", s)
		}
		// It vanishes: what was read stays in use, also by the next controller.
		if err := secrets.Delete(t.Context(), PluginSecretName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		resign()
		c = newCourt(c.client, c.nodes)
		defer c.lead(t)()
		if got := c.keeper.Status(); got.Issuer != s.Issuer || code(c.keeper.Problem()) != PluginMissing {
			t.Errorf("%+v, %v", got.Issuer, c.keeper.Problem())
		}
		c.ask(t, RotateRoot)
		pass(4 * aStep)
		if got := c.keeper.Status(); got.Issuer.Origin != "self-managed" || got.Problem != nil {
			t.Errorf("no way back to a root of our own: %+v", got)
		}
	})
}

func TestBadPluginAtTheStartIsNotPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: PluginSecretName}})
		c := newCourt(client, &nodes{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := c.keeper.Open(ctx); err == nil {
			t.Error("opened")
		}
		if code(c.keeper.Problem()) != PluginInvalid || secret(t, client) != nil {
			t.Errorf("%v; a root of our own was made instead: %v", c.keeper.Problem(), secret(t, client) != nil)
		}
		if _, _, err := c.authority.Issue(cart, "", 0); err == nil {
			t.Error("signed")
		}
	})
}

func TestStateThatIsLostOrDamagedIsPutBack(t *testing.T) {
	for title, harm := range map[string]func(context.Context, *fake.Clientset) error{
		"lost": func(ctx context.Context, client *fake.Clientset) error {
			return client.CoreV1().Secrets(system).Delete(ctx, StateSecretName, metav1.DeleteOptions{})
		},
		"damaged": func(ctx context.Context, client *fake.Clientset) error {
			_, err := client.CoreV1().Secrets(system).Update(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: StateSecretName}}, metav1.UpdateOptions{})
			return err
		},
	} {
		t.Run(title, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCourt(fake.NewClientset(), &nodes{})
				resign := c.lead(t)
				before := c.keeper.Status().Issuer
				if err := harm(t.Context(), c.client); err != nil {
					t.Fatal(err)
				}
				pass(aStep)
				resign()
				next := newCourt(c.client, c.nodes)
				defer next.lead(t)()
				if next.keeper.Status().Issuer != before {
					t.Error("the issuer is another one")
				}
			})
		})
	}
}

func TestConfigMapIsKeptRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCourt(fake.NewClientset(), &nodes{})
		defer c.lead(t)()
		root := c.authority.Bundle().Roots[0]
		if got := c.configMap(t)[ConfigMapKey]; got != root {
			t.Errorf("published %q", got)
		}
		configMaps := c.client.CoreV1().ConfigMaps(system)
		changed := configMapOf(testRoot(t).PEM())
		changed.Data["note"] = "mine"
		if _, err := configMaps.Update(t.Context(), changed, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		pass(aStep)
		if got := c.configMap(t); got[ConfigMapKey] != root || got["note"] != "mine" {
			t.Errorf("after a change: %q", got)
		}
		if err := configMaps.Delete(t.Context(), ConfigMapName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		pass(aStep)
		if got := c.configMap(t)[ConfigMapKey]; got != root {
			t.Errorf("after a deletion: %q", got)
		}
	})
}

func TestFollowerWritesNoConfigMap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCourt(fake.NewClientset(), &nodes{})
		if err := c.keeper.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		if _, err := c.client.CoreV1().ConfigMaps(system).Get(t.Context(), ConfigMapName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("a follower published: %v", err)
		}
	})
}
