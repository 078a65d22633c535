package ca

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// lookInterval is how often the Secret and the ConfigMap are looked at. Reading
// one object by name needs no permission to list Secrets, as a watch would.
const lookInterval = 10 * time.Second

// Run looks after the Secret until ctx ends, once the root is known:
// a lost one is put back as it was, anything else is reported. What is in use
// stays in use.
func (s *RootStore) Run(ctx context.Context) error {
	return every(ctx, lookInterval, func() {
		if s.unused() {
			return
		}
		s.report(s.keepSecret(ctx))
	})
}

// unused tells that another authority is plugged in, and no root of ours in use.
func (s *RootStore) unused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.root == nil
}

// every calls f at once and then at the interval until ctx ends.
func every(ctx context.Context, interval time.Duration, f func()) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		f()
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// keepSecret compares the Secret with the root in use.
func (s *RootStore) keepSecret(ctx context.Context) error {
	root := s.loaded()
	if p := checkValidity(root.cert, s.cfg.Now()); p != nil {
		p.Object, p.Fix = "Secret "+s.secret(), "delete the Secret and the ConfigMap "+s.configMap()+" and restart the controller to get a new root"
		return p
	}
	stored, err := s.read(ctx)
	switch {
	case apierrors.IsNotFound(err):
		return s.restore(ctx, root)
	case err != nil:
		return err
	case !stored.cert.Equal(root.cert) && s.succeeds(ctx, stored):
		s.adopt(stored)
	case !stored.cert.Equal(root.cert):
		return &Problem{
			Code:   RootChanged,
			Object: "Secret " + s.secret(),
			Field:  corev1.TLSCertKey,
			Detail: "it holds another root than the one in use",
			Fix:    "put the former root back (it is in the ConfigMap " + s.configMap() + "), or restart the controller to change to the new one, with overlap",
		}
	}
	return nil
}

// restore puts the root in use back into a Secret that vanished: identities
// stay what they are.
func (s *RootStore) restore(ctx context.Context, root *Root) error {
	switch err := s.create(ctx, root); {
	case err == nil:
		s.cfg.Logger.Warn("root secret had vanished and was restored from memory", "secret", s.secret())
		return nil
	case apierrors.IsAlreadyExists(err):
		// Somebody was faster; the next look compares it.
		return nil
	default:
		return &Problem{
			Code:   RootMissing,
			Object: "Secret " + s.secret(),
			Detail: fmt.Sprintf("it is gone, and putting it back is refused: %v", err),
			Fix:    "do not restart the controller before the Secret is back: it has the only copy of the root's key; it is tried again",
			cause:  err,
		}
	}
}

// replace has the Secret hold another root: the one that every node trusts by
// now, and that signs.
func (s *RootStore) replace(ctx context.Context, root *Root) error {
	secrets := s.cfg.Client.CoreV1().Secrets(s.cfg.Namespace)
	present, err := secrets.Get(ctx, SecretName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		err = s.create(ctx, root)
	case err == nil:
		present = present.DeepCopy()
		present.Data = root.fields()
		_, err = secrets.Update(ctx, present, metav1.UpdateOptions{})
	}
	if err != nil {
		return err
	}
	s.adopt(root)
	s.cfg.Logger.Info("root replaced by its successor", "secret", s.secret(), "not_after", root.cert.NotAfter)
	return nil
}

// succeeds tells whether a root in the Secret is what a rotation made of the one
// in use: then the state beside it says so, which only the leader writes.
func (s *RootStore) succeeds(ctx context.Context, stored *Root) bool {
	found, err := stateSecret{s.cfg.Client, s.cfg.Namespace}.read(ctx, s.cfg.Now())
	return err == nil && found.bundle.signing() == Fingerprint(stored.cert)
}

// opened returns the root in use; before there is one, that of the Secret, which
// is made if it may be and there is none.
func (s *RootStore) opened(ctx context.Context, mayCreate bool) (*Root, error) {
	s.mu.Lock()
	root := s.root
	s.mu.Unlock()
	if root != nil {
		return root, nil
	}
	var err error
	if mayCreate {
		root, err = s.load(ctx)
	} else {
		root, err = s.read(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.adopt(root)
	return root, nil
}

func (s *RootStore) adopt(root *Root) {
	s.mu.Lock()
	s.root = root
	s.mu.Unlock()
	s.expiry.Set(float64(root.cert.NotAfter.Unix()))
}

// loaded returns the root that Open found.
func (s *RootStore) loaded() *Root {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.root == nil {
		panic(errors.New("root store runs before it was opened"))
	}
	return s.root
}
