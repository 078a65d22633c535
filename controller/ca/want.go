package ca

import (
	"context"
	"crypto/x509"
	"time"
)

// wanted is what is to sign, as soon as every node trusts its root.
type wanted struct {
	root trusted
	// make returns the issuer; the one in use, if that will do.
	make func() (*Issuer, error)
	// next is a root of ours that is to follow.
	next *Root
}

// want looks at the plug-in, at our root, and at what was asked for. With an
// error what is in use stays in use.
func (k *Keeper) want(ctx context.Context, s state, request request) (wanted, error) {
	data, err := k.secretData(ctx, PluginSecretName)
	if err != nil {
		return wanted{}, err
	}
	if data != nil {
		return k.wantPlugin(data, s, request)
	}
	if s.issuer != nil && s.issuer.origin == pluggedIn && s.next == nil && !request.root {
		return wanted{}, &Problem{
			Code: PluginMissing, Object: "Secret " + k.name(PluginSecretName), Detail: "it is gone, while the mesh trusts its root; what was read of it stays in use",
			Fix: "put the Secret back; or run `ambit ca rotate --root` to change to a root that the mesh manages itself",
		}
	}
	return k.wantOwn(ctx, s, request)
}

func (k *Keeper) wantPlugin(data map[string][]byte, s state, request request) (wanted, error) {
	issuer, problem := parsePlugin(data, k.cfg.TrustDomain, k.cfg.Now())
	if problem != nil {
		problem.Object, problem.Fix = "Secret "+k.name(PluginSecretName), pluginFix(s.issuer != nil)
		return wanted{}, problem
	}
	if err := k.cfg.Authority.revocations().Check([][]*x509.Certificate{issuer.way()}); err != nil && !issuer.equal(s.issuer) {
		return wanted{}, &Problem{
			Code: PluginInvalid, Object: "Secret " + k.name(PluginSecretName), Field: PluginCertKey, Detail: err.Error(),
			Fix: "put a signing certificate into it that is not; until then the mesh goes on with the issuer that it has", cause: err,
		}
	}
	if request.any() {
		k.cfg.Logger.Warn("rotation not done: the issuer is plugged in; put another one into its Secret", "secret", k.name(PluginSecretName))
	}
	return wanted{root: trustedRoot(issuer), make: func() (*Issuer, error) {
		if issuer.equal(s.issuer) {
			return s.issuer, nil
		}
		return issuer, nil
	}}, nil
}

func (k *Keeper) wantOwn(ctx context.Context, s state, request request) (wanted, error) {
	now := k.cfg.Now()
	root := s.next
	if root == nil {
		var err error
		switch root, err = k.cfg.Root.opened(ctx, s.issuer == nil); {
		case err != nil && !request.root:
			return wanted{}, err
		case err != nil:
			root = nil // a new one is on its way
		}
	}
	next := s.next
	if next != nil && request.root {
		k.cfg.Logger.Warn("rotation not done: another root is on its way already", "fingerprint", Fingerprint(next.cert))
	}
	if s.issuer != nil && next == nil && (request.root || root == nil || aged(root, now)) {
		var err error
		if next, err = newRoot(k.cfg.TrustDomain, now); err != nil {
			return wanted{}, err
		}
		root = next
	}
	return wanted{root: trustedCertificate(root), next: next, make: func() (*Issuer, error) {
		current := s.issuer
		if current != nil && current.root.Equal(root.cert) && !current.dueForRenewal(now) && !request.intermediate {
			return current, nil
		}
		return newIssuer(root, k.cfg.TrustDomain, now)
	}}, nil
}

// aged tells whether a root has lived so long that its successor has to come.
func aged(root *Root, now time.Time) bool {
	life := root.cert.NotAfter.Sub(root.cert.NotBefore)
	return now.After(root.cert.NotBefore.Add(time.Duration(rootRenewAfter * float64(life))))
}

func trustedRoot(issuer *Issuer) trusted {
	return trusted{PEM: encodeCertificate(issuer.root.Raw), Fingerprint: Fingerprint(issuer.root)}
}

func trustedCertificate(root *Root) trusted {
	return trusted{PEM: root.PEM(), Fingerprint: Fingerprint(root.cert)}
}

// another returns an intermediate below the root that signs now, while another root is
// waited for: whoever asks for it does not wait along, for its key may have leaked. If
// that root's key is not at hand, the one that is there stays in use until the next
// root signs, which has an intermediate of its own.
func (k *Keeper) another(ctx context.Context, s state) *Issuer {
	root, err := k.cfg.Root.opened(ctx, false)
	if err == nil && Fingerprint(root.cert) == s.bundle.signing() && s.issuer.origin == selfManaged {
		var next *Issuer
		if next, err = newIssuer(root, k.cfg.TrustDomain, k.cfg.Now()); err == nil {
			return next
		}
	}
	k.cfg.Logger.Warn("another intermediate comes with the next root: the key of the root that signs now is not at hand", "error", err)
	return s.issuer
}
