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
func (k *Keeper) want(ctx context.Context, s state, request string) (wanted, error) {
	data, err := k.secretData(ctx, PluginSecretName)
	if err != nil {
		return wanted{}, err
	}
	if data != nil {
		return k.wantPlugin(data, s, request)
	}
	if s.issuer != nil && s.issuer.origin == pluggedIn && s.next == nil && request != RotateRoot {
		return wanted{}, &Problem{
			Code: PluginMissing, Object: "Secret " + k.name(PluginSecretName), Detail: "it is gone, while the mesh trusts its root; what was read of it stays in use",
			Fix: "put the Secret back; or run `ambit ca rotate --root` to change to a root that the mesh manages itself",
		}
	}
	return k.wantOwn(ctx, s, request)
}

func (k *Keeper) wantPlugin(data map[string][]byte, s state, request string) (wanted, error) {
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
	if request != "" {
		k.cfg.Logger.Warn("rotation not done: the issuer is plugged in; put another one into its Secret", "asked", request, "secret", k.name(PluginSecretName))
	}
	return wanted{root: trustedRoot(issuer), make: func() (*Issuer, error) {
		if issuer.equal(s.issuer) {
			return s.issuer, nil
		}
		return issuer, nil
	}}, nil
}

func (k *Keeper) wantOwn(ctx context.Context, s state, request string) (wanted, error) {
	now := k.cfg.Now()
	root := s.next
	if root == nil {
		var err error
		switch root, err = k.cfg.Root.opened(ctx, s.issuer == nil); {
		case err != nil && request != RotateRoot:
			return wanted{}, err
		case err != nil:
			root = nil // a new one is on its way
		}
	}
	next := s.next
	if s.issuer != nil && next == nil && (request == RotateRoot || root == nil || aged(root, now)) {
		var err error
		if next, err = newRoot(k.cfg.TrustDomain, now); err != nil {
			return wanted{}, err
		}
		root = next
	}
	return wanted{root: trustedCertificate(root), next: next, make: func() (*Issuer, error) {
		current := s.issuer
		if current != nil && current.root.Equal(root.cert) && !current.dueForRenewal(now) && request != RotateIntermediate {
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
