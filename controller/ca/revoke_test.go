package ca

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/spiffe"
	"github.com/ambit-mesh/ambit/internal/workload/workloadtest"
)

var webID = spiffe.ID{TrustDomain: trustDomain, Namespace: "shop", ServiceAccount: "web"}

// registry is a court that revokes.
type registry struct {
	*court
	revoker *Revoker
	resign  func()
}

func newRegistry(t *testing.T, client *fake.Clientset) *registry {
	t.Helper()
	r := &registry{court: newCourt(client, &nodes{used: map[string]bool{}})}
	end := r.lead(t)
	r.revoker = NewRevoker(RevokerConfig{
		Client: client, Namespace: system, TrustDomain: trustDomain, Authority: r.authority, Logger: quiet(), Now: r.authority.cfg.Now,
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.revoker.RunLeader(ctx) }()
	synctest.Wait()
	r.resign = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		end()
	}
	return r
}

func (r *registry) object(t *testing.T) *corev1.ConfigMap {
	t.Helper()
	m, err := r.client.CoreV1().ConfigMaps(system).Get(t.Context(), RevokedConfigMapName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// change edits the ConfigMap as somebody else does.
func (r *registry) change(t *testing.T, edit func(map[string]string)) {
	t.Helper()
	m := r.object(t)
	edit(m.Data)
	if _, err := r.client.CoreV1().ConfigMaps(system).Update(t.Context(), m, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// ask revokes as the command does, and returns why it was refused.
func (r *registry) revoke(t *testing.T, name string, ask RevokeRequest) (refused string) {
	t.Helper()
	text, err := json.Marshal(ask)
	if err != nil {
		t.Fatal(err)
	}
	r.change(t, func(data map[string]string) { data[RequestPrefix+name] = string(text) })
	pass(revokeInterval + time.Second)
	m := r.object(t)
	if _, there := m.Data[RequestPrefix+name]; there {
		t.Errorf("request %s is still there", name)
	}
	list, err := decodeRevoked(m.Data[RevokedKey])
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(list.Outcomes, func(o RevokeOutcome) bool { return o.Request == name })
	if at < 0 {
		t.Fatalf("request %s has no outcome: %v", name, list.Outcomes)
	}
	return list.Outcomes[at].Refused
}

// issue signs for an identity.
func (r *registry) issue(t *testing.T, id spiffe.ID) [][]*x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}, key)
	if err != nil {
		t.Fatal(err)
	}
	chain, leaf, err := r.authority.Issue(id, string(pem.EncodeToMemory(&pem.Block{Type: requestBlock, Bytes: csr})), 0)
	if err != nil {
		t.Fatal(err)
	}
	way := []*x509.Certificate{leaf}
	for _, element := range chain[1:] {
		way = append(way, parsePEM(t, element))
	}
	return [][]*x509.Certificate{way}
}

// isRevoked asks the list that is in force at the authority; a data plane that has
// what is sent must say the same.
func (r *registry) isRevoked(t *testing.T, chains [][]*x509.Certificate) bool {
	t.Helper()
	store := workloadtest.Store(t, r.revoker.Message())
	here, there := r.authority.revocations().Check(chains), store.Snapshot().Revoked().Check(chains)
	if (here == nil) != (there == nil) {
		t.Errorf("the authority says %v, a data plane %v", here, there)
	}
	return here != nil
}

// An identity is revoked: all that was issued before is, and what is issued from
// then on is not, also within the same second and over again.
func TestAnIdentityIsRevokedUpToNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, fake.NewClientset())
		defer r.resign()
		other := spiffe.ID{TrustDomain: trustDomain, Namespace: "shop", ServiceAccount: "till"}
		before, others := r.issue(t, webID), r.issue(t, other)
		for _, name := range []string{"one", "two"} {
			if refused := r.revoke(t, name, RevokeRequest{Identity: webID.String(), Note: "its key leaked"}); refused != "" {
				t.Fatal(refused)
			}
			after := r.issue(t, webID)
			if !r.isRevoked(t, before) || r.isRevoked(t, after) || r.isRevoked(t, others) {
				t.Fatalf("%s: before %v, after %v, another's %v", name, r.isRevoked(t, before), r.isRevoked(t, after), r.isRevoked(t, others))
			}
			before = after
		}
		message := r.revoker.Message()
		if len(message.GetIdentities()) != 1 || message.GetIdentities()[0].GetIdentity() != webID.String() {
			t.Errorf("data planes are sent %v", message)
		}
	})
}

// An entry ends with the last certificate that it is about, and no sooner.
func TestEntriesEndWithTheirCertificates(t *testing.T) {
	root := testRoot(t)
	issuer, err := newIssuer(root, trustDomain, start)
	if err != nil {
		t.Fatal(err)
	}
	list := Revoked{Version: 1}.know(issuer)
	for _, ask := range []RevokeRequest{{Serial: "1f"}, {Identity: webID.String()}} {
		if list, err = list.revoke(ask, trustDomain, issuer, start); err != nil {
			t.Fatal(err)
		}
	}
	list.CRLs = []AcceptedCRL{{Expires: start.Add(48 * time.Hour), Serials: []string{"a"}}}
	for _, c := range []struct {
		after time.Duration
		count int
	}{{0, 3}, {maxLifetime, 3}, {retireAfter, 1}, {47 * time.Hour, 1}, {48 * time.Hour, 0}} {
		if got := list.expire(start.Add(c.after)).count(); got != c.count {
			t.Errorf("after %s %d are revoked, want %d", c.after, got, c.count)
		}
	}
	if got := list.expire(start.Add(rootLifetime)).Issuers; len(got) != 0 {
		t.Errorf("authorities that have ended are known: %v", got)
	}
	// What an intermediate signs ends with it: so does what is revoked of it.
	late := issuer.cert.NotAfter.Add(-time.Hour)
	if list, err = (Revoked{Version: 1}).know(issuer).revoke(RevokeRequest{Serial: "1f"}, trustDomain, issuer, late); err != nil || !list.Entries[0].Expires.Equal(issuer.cert.NotAfter) {
		t.Errorf("%v, %+v", err, list.Entries)
	}
}

func TestRevokedWithinOneSecond(t *testing.T) {
	list, now := Revoked{Version: 1}, start.Add(300*time.Millisecond)
	var begins []time.Time
	for range 3 {
		var err error
		if list, err = list.revoke(RevokeRequest{Identity: webID.String()}, trustDomain, nil, now); err != nil {
			t.Fatal(err)
		}
		begins = append(begins, list.Entries[0].BegunBefore)
	}
	if len(list.Entries) != 1 || !begins[1].After(begins[0]) || !begins[2].After(begins[1]) {
		t.Errorf("begins %v", begins)
	}
}

// A serial number is revoked, however it is written; the intermediate of before is,
// and the one that signs is not, and whoever asks hears why.
func TestASerialNumberIsRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, fake.NewClientset())
		defer r.resign()
		leaked, kept := r.issue(t, webID), r.issue(t, webID)
		serial := strings.ToUpper(leaked[0][0].SerialNumber.Text(16))
		if refused := r.revoke(t, "leaf", RevokeRequest{Serial: "0x" + serial}); refused != "" {
			t.Fatal(refused)
		}
		if !r.isRevoked(t, leaked) || r.isRevoked(t, kept) {
			t.Error("not that one, or others as well")
		}
		signing := kept[0][1]
		for name, c := range map[string]struct {
			ask   RevokeRequest
			words string
		}{
			"signs":      {RevokeRequest{Serial: signing.SerialNumber.Text(16)}, "ambit ca rotate"},
			"root":       {RevokeRequest{Serial: kept[0][2].SerialNumber.Text(16)}, "ambit ca rotate"},
			"nothing":    {RevokeRequest{}, "either a serial number or an identity"},
			"both":       {RevokeRequest{Serial: "1", Identity: webID.String()}, "either"},
			"number":     {RevokeRequest{Serial: "seven"}, "hex digits"},
			"issuer":     {RevokeRequest{Serial: "1f", Issuer: strings.Repeat("a0", 32)}, "is not known: it is one of " + revocation.KeyID(signing)},
			"identity":   {RevokeRequest{Identity: "web"}, "identity"},
			"elsewhere":  {RevokeRequest{Identity: "spiffe://elsewhere.example/ns/shop/sa/web"}, "another trust domain"},
			"longwinded": {RevokeRequest{Serial: "1f", Note: strings.Repeat("x", 257)}, "note"},
		} {
			if refused := r.revoke(t, name, c.ask); !strings.Contains(refused, c.words) {
				t.Errorf("%s: %q, want ...%s...", name, refused, c.words)
			}
		}
		if n := r.authority.revocations().Len(); n != 1 {
			t.Errorf("%d are revoked after refusals, want 1", n)
		}
		r.change(t, func(data map[string]string) { data[RequestPrefix+"junk"] = "{" })
		pass(aStep)

		r.ask(t, RotateIntermediate)
		pass(aStep)
		if refused := r.revoke(t, "former", RevokeRequest{Serial: signing.SerialNumber.Text(16)}); refused != "" {
			t.Fatal(refused)
		}
		if fresh := r.issue(t, webID); !r.isRevoked(t, kept) || r.isRevoked(t, fresh) {
			t.Error("what is below the former intermediate is accepted, or what is not refused")
		}
	})
}

// A list that would not fit into its ConfigMap is refused before it is tried, and
// what is in it already stays.
func TestTheListIsBounded(t *testing.T) {
	root := testRoot(t)
	issuer, err := newIssuer(root, trustDomain, start)
	if err != nil {
		t.Fatal(err)
	}
	list := Revoked{Version: 1}.know(issuer)
	list.CRLs = []AcceptedCRL{{Issuer: revocation.KeyID(issuer.cert), Expires: issuer.cert.NotAfter}}
	const line = len("\n    \"10000000000\",") // of a serial number in the text
	for bytes := 0; bytes < maxListBytes-4096; bytes += line {
		list.CRLs[0].Serials = append(list.CRLs[0].Serials, fmt.Sprintf("%x", 1<<40+len(list.CRLs[0].Serials)))
	}
	if err := list.fits(); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		next, err := list.revoke(RevokeRequest{Serial: fmt.Sprintf("%x", 1<<50+i)}, trustDomain, issuer, start)
		if err != nil {
			if !strings.Contains(err.Error(), "revoke an identity instead") || len(next.Entries) != i {
				t.Errorf("after %d: %v, %d entries", i, err, len(next.Entries))
			}
			return
		}
		list = next
	}
	t.Error("it grows without an end")
}

// The list outlives the controller; what somebody else does to it does not.
func TestTheListIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, fake.NewClientset())
		leaked := r.issue(t, webID)
		if refused := r.revoke(t, "one", RevokeRequest{Serial: leaked[0][0].SerialNumber.Text(16)}); refused != "" {
			t.Fatal(refused)
		}
		for name, harm := range map[string]func(){
			"damaged": func() { r.change(t, func(data map[string]string) { data[RevokedKey] = "{" }) },
			"emptied": func() {
				r.change(t, func(data map[string]string) {
					data[RevokedKey] = `{"version":1,"entries":[],"issuers":[]}`
				})
			},
			"without its field": func() { r.change(t, func(data map[string]string) { delete(data, RevokedKey) }) },
			"deleted": func() {
				if err := r.client.CoreV1().ConfigMaps(system).Delete(t.Context(), RevokedConfigMapName, metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
			},
		} {
			harm()
			pass(revokeInterval + time.Second)
			list, err := decodeRevoked(r.object(t).Data[RevokedKey])
			if err != nil || len(list.Entries) != 1 || !r.isRevoked(t, leaked) {
				t.Errorf("%s: %v, %+v", name, err, list.Entries)
			}
		}
		r.resign()
		next := newRegistry(t, r.client)
		if !next.isRevoked(t, leaked) {
			t.Error("another controller does not know of it")
		}
		next.resign()

		// Without a controller that remembers, harm is a person's to mend; nobody is
		// told meanwhile that nothing is revoked.
		good := next.object(t).Data[RevokedKey]
		next.change(t, func(data map[string]string) { data[RevokedKey] = "{" })
		third := newRegistry(t, next.client)
		pass(time.Minute)
		third.isStuck(t, RevokedUnreadable)
		third.change(t, func(data map[string]string) { data[RevokedKey] = good })
		pass(revokeInterval + time.Second)
		if third.revoker.Problem() != nil || !third.isRevoked(t, leaked) {
			t.Errorf("after it was put back: %v", third.revoker.Problem())
		}
		third.resign()
		if err := third.client.CoreV1().ConfigMaps(system).Delete(t.Context(), RevokedConfigMapName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		fourth := newRegistry(t, third.client)
		pass(time.Minute)
		fourth.isStuck(t, RevokedLost)
		fourth.resign()
	})
}

// isStuck demands that nothing is known, and that it is said what is wrong.
func (r *registry) isStuck(t *testing.T, code Code) {
	t.Helper()
	problem, ok := r.revoker.Problem().(*Problem)
	if !ok || problem.Code != code || problem.Fix == "" {
		t.Errorf("problem %v, want %s", r.revoker.Problem(), code)
	}
	select {
	case <-r.revoker.Ready():
		t.Error("ready")
	default:
	}
	if r.revoker.Message() != nil {
		t.Errorf("data planes would be sent %v", r.revoker.Message())
	}
}

// A request that came before the first list was made is answered, too.
func TestAFirstRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: RevokedConfigMapName, Namespace: system},
			Data:       map[string]string{RequestPrefix + "early": `{"identity":"` + webID.String() + `"}`},
		})
		r := newRegistry(t, client)
		defer r.resign()
		if r.authority.revocations().Len() != 1 {
			t.Errorf("not revoked: %v", r.revoker.Problem())
		}
		published, err := client.CoreV1().ConfigMaps(system).Get(t.Context(), ConfigMapName, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		pass(aStep)
		if published, err = client.CoreV1().ConfigMaps(system).Get(t.Context(), ConfigMapName, metav1.GetOptions{}); err != nil || published.Annotations[RevokedAnnotation] == "" {
			t.Errorf("the list's loss would not be seen: %v, %v", published.Annotations, err)
		}
	})
}
