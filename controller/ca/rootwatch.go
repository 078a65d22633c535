package ca

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// lookInterval is how often the Secret and the ConfigMap are looked at. Reading
// one object by name needs no permission to list Secrets, as a watch would.
const lookInterval = 10 * time.Second

// Run looks after the Secret until ctx ends, once [RootStore.Open] returned:
// a lost one is put back as it was, anything else is reported. What is in use
// stays in use.
func (s *RootStore) Run(ctx context.Context) error {
	return every(ctx, lookInterval, func() { s.report(s.keepSecret(ctx)) })
}

// RunLeader keeps the ConfigMap right until ctx ends. Only the leader runs it.
func (s *RootStore) RunLeader(ctx context.Context) error {
	return every(ctx, lookInterval, func() {
		if err := s.publish(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Error("publish root", "config_map", s.configMap(), "error", err)
		}
	})
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
	case !stored.cert.Equal(root.cert):
		return &Problem{
			Code:   RootChanged,
			Object: "Secret " + s.secret(),
			Field:  corev1.TLSCertKey,
			Detail: "it holds another root than the one in use",
			Fix:    "put the former root back (it is in the ConfigMap " + s.configMap() + "), or restart the controller to use the new one",
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

// publish makes the ConfigMap hold the root in use.
func (s *RootStore) publish(ctx context.Context) error {
	root := s.loaded()
	configMaps := s.cfg.Client.CoreV1().ConfigMaps(s.cfg.Namespace)
	present, err := configMaps.Get(ctx, ConfigMapName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err := configMaps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{
				Name: ConfigMapName, Namespace: s.cfg.Namespace,
				Labels: map[string]string{"app.kubernetes.io/part-of": "ambit"},
			},
			Data: map[string]string{ConfigMapKey: root.PEM()},
		}, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	if bytes.Equal([]byte(present.Data[ConfigMapKey]), root.certPEM) {
		return nil
	}
	next := present.DeepCopy()
	next.Data = maps.Clone(present.Data)
	if next.Data == nil {
		next.Data = map[string]string{}
	}
	next.Data[ConfigMapKey] = root.PEM()
	if _, err := configMaps.Update(ctx, next, metav1.UpdateOptions{}); err != nil {
		return err
	}
	if present.Data[ConfigMapKey] != "" {
		s.cfg.Logger.Warn("published root differed from the one in use and was replaced", "config_map", s.configMap())
	}
	return nil
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
