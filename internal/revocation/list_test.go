package revocation_test

import (
	"crypto/x509"
	"errors"
	"math/big"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/certs/certstest"
	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

var web = spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "web"}

// issued is a leaf below an intermediate below a root, as Verify returns it.
func issued(t testing.TB, id spiffe.ID) [][]*x509.Certificate {
	t.Helper()
	root := certstest.NewCA(t, "cluster.local")
	between := root.Intermediate()
	leaf := between.Issue(id, time.Hour)
	return [][]*x509.Certificate{{leaf.Leaf, between.Certificate(), root.Certificate()}}
}

func named(issuer, certificate *x509.Certificate) revocation.Certificate {
	return revocation.Certificate{Issuer: revocation.KeyID(issuer), Serial: revocation.SerialOf(certificate)}
}

func list(t testing.TB, certificates []revocation.Certificate, identities ...revocation.Identity) *revocation.List {
	t.Helper()
	l, err := revocation.New(certificates, identities)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestWhatIsRevoked(t *testing.T) {
	chains := issued(t, web)
	leaf, between, root := chains[0][0], chains[0][1], chains[0][2]
	stranger := certstest.NewCA(t, "cluster.local").Certificate()
	other := spiffe.ID{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "till"}
	for name, c := range map[string]struct {
		list    *revocation.List
		revoked bool
	}{
		"nothing is known":                         {nil, false},
		"an empty list":                            {list(t, nil), false},
		"the leaf":                                 {list(t, []revocation.Certificate{named(between, leaf)}), true},
		"the intermediate":                         {list(t, []revocation.Certificate{named(root, between)}), true},
		"the root":                                 {list(t, []revocation.Certificate{named(root, root)}), true},
		"the leaf's number of an unknown issuer":   {list(t, []revocation.Certificate{named(stranger, leaf)}), false},
		"the leaf's number, of the root":           {list(t, []revocation.Certificate{named(root, leaf)}), false},
		"the intermediate's number, of the leaf's": {list(t, []revocation.Certificate{named(between, between)}), false},
		"an identity's older ones":                 {list(t, nil, revocation.Identity{ID: web, BegunBefore: leaf.NotBefore.Add(time.Second)}), true},
		"an identity's, from this one on":          {list(t, nil, revocation.Identity{ID: web, BegunBefore: leaf.NotBefore}), false},
		"another identity's":                       {list(t, nil, revocation.Identity{ID: other, BegunBefore: leaf.NotBefore.Add(time.Hour)}), false},
		"the later moment of two": {list(t, nil, revocation.Identity{ID: web, BegunBefore: leaf.NotBefore.Add(time.Second)},
			revocation.Identity{ID: web, BegunBefore: leaf.NotBefore.Add(-time.Hour)}), true},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.list.Check(chains)
			if (err != nil) != c.revoked {
				t.Errorf("revoked: %v, want %v", err, c.revoked)
			}
			if err != nil && !errors.Is(err, revocation.ErrRevoked) {
				t.Errorf("%v is not ErrRevoked", err)
			}
		})
	}
}

// Who shows another way up besides the revoked one is refused, too.
func TestNoWayAroundWhatIsRevoked(t *testing.T) {
	one, another := issued(t, web), issued(t, web)
	l := list(t, []revocation.Certificate{named(one[0][2], one[0][1])})
	if l.Check(another) != nil {
		t.Fatal("refused for nothing")
	}
	if l.Check(append(another, one...)) == nil {
		t.Error("accepted by the other way")
	}
}

// Whatever is on a list, one entry more accepts nothing that was refused before.
func TestAddingNeverWidens(t *testing.T) {
	var all [][][]*x509.Certificate
	var certificates []revocation.Certificate
	var identities []revocation.Identity
	for i := range 6 {
		id := web
		if i%2 == 1 {
			id.ServiceAccount = "till"
		}
		chains := issued(t, id)
		leaf, between, root := chains[0][0], chains[0][1], chains[0][2]
		all = append(all, chains)
		certificates = append(certificates, named(between, leaf), named(root, between), named(root, leaf), named(root, root))
		for _, d := range []time.Duration{-time.Hour, 0, time.Second} {
			identities = append(identities, revocation.Identity{ID: id, BegunBefore: leaf.NotBefore.Add(d)})
		}
	}
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		var c []revocation.Certificate
		var i []revocation.Identity
		refused := map[int]bool{}
		for range 8 {
			if r.IntN(2) == 0 {
				c = append(c, certificates[r.IntN(len(certificates))])
			} else {
				i = append(i, identities[r.IntN(len(identities))])
			}
			l := list(t, c, i...)
			for n, chains := range all {
				switch now := l.Check(chains) != nil; {
				case refused[n] && !now:
					t.Fatalf("seed %d: chain %d is accepted once more is revoked: %v, %v", seed, n, c, i)
				case now:
					refused[n] = true
				}
			}
		}
	}
}

func TestSerialNumbersHaveOneSpelling(t *testing.T) {
	for text, want := range map[string]string{
		"1f": "1f", "1F": "1f", "0x1F": "1f", "001f": "1f", "00:1f": "1f", " 1F\n": "1f", "AB:CD:0E": "abcd0e",
		strings.Repeat("f", 40): strings.Repeat("f", 40), "00" + strings.Repeat("f", 40): strings.Repeat("f", 40),
	} {
		if got, err := revocation.Serial(text); err != nil || got != want {
			t.Errorf("%q is read as %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "0x", "00:00", "-1", "1g", "1:f", "1f:", "1f 2e", strings.Repeat("f", 41), "spiffe://cluster.local/ns/a/sa/b"} {
		if got, err := revocation.Serial(text); err == nil {
			t.Errorf("%q is read as %q", text, got)
		} else if !strings.Contains(err.Error(), "serial number") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// FuzzSerial: what is read is what the certificate of that number spells, and is
// spelled so that reading it again changes nothing.
func FuzzSerial(f *testing.F) {
	for _, seed := range []string{"1f", "0x00AB", "00:01:02", "ffff", "-2", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		serial, err := revocation.Serial(text)
		if err != nil {
			return
		}
		number, ok := new(big.Int).SetString(serial, 16)
		if !ok || number.Sign() <= 0 {
			t.Fatalf("%q is read as %q, which is no number", text, serial)
		}
		if got := revocation.SerialOf(&x509.Certificate{SerialNumber: number}); got != serial {
			t.Fatalf("a certificate of that number spells it %q, not %q", got, serial)
		}
		if again, err := revocation.Serial(serial); err != nil || again != serial {
			t.Fatalf("%q is read again as %q, %v", serial, again, err)
		}
	})
}

func TestWhatMakesNoList(t *testing.T) {
	issuer := strings.Repeat("a0", 32)
	for name, err := range map[string]error{
		"an issuer in capitals":        tryNew(revocation.Certificate{Issuer: strings.ToUpper(issuer), Serial: "1"}),
		"an issuer that is too short":  tryNew(revocation.Certificate{Issuer: issuer[2:], Serial: "1"}),
		"a serial number with zeros":   tryNew(revocation.Certificate{Issuer: issuer, Serial: "01"}),
		"a serial number in capitals":  tryNew(revocation.Certificate{Issuer: issuer, Serial: "A"}),
		"more than there may be":       tryNew(make([]revocation.Certificate, revocation.MaxEntries+1)...),
		"an identity without a moment": func() error { _, err := revocation.New(nil, []revocation.Identity{{ID: web}}); return err }(),
		"nobody's": func() error {
			_, err := revocation.New(nil, []revocation.Identity{{BegunBefore: time.Now()}})
			return err
		}(),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func tryNew(certificates ...revocation.Certificate) error {
	_, err := revocation.New(certificates, nil)
	return err
}
