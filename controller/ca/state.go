package ca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// StateSecretName is the Secret with the issuer in use and the state of its
	// rotation: a controller that starts goes on where another one ended.
	StateSecretName = "ambit-ca-state"
	// RotateAnnotation on that Secret, with what is to be rotated after it, asks for
	// that: one for each, so that none takes another's place.
	RotateAnnotation = "ambit.mesh/rotate-"
	// RotateRoot and RotateIntermediate are what may be asked for.
	RotateRoot         = "root"
	RotateIntermediate = "intermediate"

	bundleKey   = "bundle.json"
	nextCertKey = "next-root.crt"
	nextKeyKey  = "next-root.key"
)

// state is what has to outlive a controller. It is a value.
type state struct {
	issuer *Issuer
	bundle bundle
	// next is a root of ours that is to follow, until it is the one in the
	// Secret ambit-ca.
	next *Root
}

func (s state) encode() (map[string][]byte, error) {
	data := map[string][]byte{}
	if err := s.issuer.encode(data); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(s.bundle, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode trust bundle: %w", err)
	}
	data[bundleKey] = text
	if s.next != nil {
		data[nextCertKey], data[nextKeyKey] = s.next.certPEM, s.next.keyPEM
	}
	return data, nil
}

func decodeState(data map[string][]byte, now time.Time) (state, error) {
	var s state
	var err error
	if s.issuer, err = decodeIssuer(data); err != nil {
		return state{}, err
	}
	if s.issuer == nil {
		return state{}, fmt.Errorf("%s is missing", issuerCertKey)
	}
	if err := json.Unmarshal(data[bundleKey], &s.bundle); err != nil {
		return state{}, fmt.Errorf("%s: %w", bundleKey, err)
	}
	for i, t := range s.bundle {
		certs, err := parseCertificates([]byte(t.PEM))
		if err != nil || len(certs) != 1 || Fingerprint(certs[0]) != t.Fingerprint {
			return state{}, fmt.Errorf("%s: root %d is not the one that its fingerprint names (%v)", bundleKey, i, err)
		}
	}
	if s.bundle.signing() != Fingerprint(s.issuer.root) {
		return state{}, fmt.Errorf("%s: the root of %s is not the one that signs", bundleKey, issuerCertKey)
	}
	if len(data[nextCertKey]) > 0 {
		next, problem := parseRoot(map[string][]byte{corev1.TLSCertKey: data[nextCertKey], corev1.TLSPrivateKeyKey: data[nextKeyKey]}, now)
		if problem != nil {
			return state{}, fmt.Errorf("%s, %s: %s", nextCertKey, nextKeyKey, problem.Detail)
		}
		s.next = next
	}
	return s, nil
}

// request is what somebody asks to be rotated.
type request struct{ root, intermediate bool }

func (r request) any() bool { return r != request{} }

func readAsked(annotations map[string]string) (r request) {
	_, r.root = annotations[RotateAnnotation+RotateRoot]
	_, r.intermediate = annotations[RotateAnnotation+RotateIntermediate]
	return r
}

// stateSecret reads and writes the state.
type stateSecret struct {
	client    kubernetes.Interface
	namespace string
}

// stored is a state as it was read.
type storedState struct {
	state
	exists  bool
	version string // of the object
	request request
}

// read returns NotFound, *damaged, or the API server's error.
func (s stateSecret) read(ctx context.Context, now time.Time) (storedState, error) {
	secret, err := s.client.CoreV1().Secrets(s.namespace).Get(ctx, StateSecretName, metav1.GetOptions{})
	if err != nil {
		return storedState{}, err
	}
	found := storedState{exists: true, version: secret.ResourceVersion, request: readAsked(secret.Annotations)}
	if found.state, err = decodeState(secret.Data, now); err != nil {
		return found, &damaged{err}
	}
	return found, nil
}

// damaged is a state that cannot be read.
type damaged struct{ error }

func (d *damaged) Unwrap() error { return d.error }

func isDamaged(err error) bool {
	_, ok := errors.AsType[*damaged](err)
	return ok
}

// write replaces the state that was found, and the request with it if that is
// answered. A conflict means that another one wrote meanwhile.
func (s stateSecret) write(ctx context.Context, next state, found storedState, answered bool) error {
	data, err := next.encode()
	if err != nil {
		return err
	}
	secrets := s.client.CoreV1().Secrets(s.namespace)
	if !found.exists {
		_, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: StateSecretName, Namespace: s.namespace, Labels: map[string]string{"app.kubernetes.io/part-of": "ambit"}},
			Type:       corev1.SecretTypeOpaque, Data: data,
		}, metav1.CreateOptions{})
		return err
	}
	present, err := secrets.Get(ctx, StateSecretName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if present.ResourceVersion != found.version {
		return apierrors.NewConflict(corev1.Resource("secrets"), StateSecretName, errors.New("it was changed since it was read"))
	}
	present = present.DeepCopy()
	present.Data = data
	if answered {
		present.Annotations = maps.Clone(present.Annotations)
		delete(present.Annotations, RotateAnnotation+RotateRoot)
		delete(present.Annotations, RotateAnnotation+RotateIntermediate)
	}
	_, err = secrets.Update(ctx, present, metav1.UpdateOptions{})
	return err
}
