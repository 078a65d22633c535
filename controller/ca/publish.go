package ca

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// StatusKey is the field of the ConfigMap [ConfigMapName] with a [Status].
const StatusKey = "status.json"

// Status is what people see of roots and issuer.
type Status struct {
	Roots  []RootStatus `json:"roots"`
	Issuer IssuerStatus `json:"issuer"`
	// Waiting are the nodes that a rotation waits for.
	Waiting []string       `json:"waiting,omitempty"`
	Problem *ProblemStatus `json:"problem,omitempty"`
}

// RootStatus is one root of the trust bundle.
type RootStatus struct {
	Fingerprint string    `json:"fingerprint"`
	Subject     string    `json:"subject"`
	Phase       string    `json:"phase"`
	Since       time.Time `json:"since"`
	NotAfter    time.Time `json:"notAfter"`
}

// IssuerStatus is what leaves are signed with.
type IssuerStatus struct {
	Origin   string    `json:"origin"`
	Subject  string    `json:"subject"`
	Serial   string    `json:"serial"`
	Root     string    `json:"root"` // fingerprint
	NotAfter time.Time `json:"notAfter"`
}

// ProblemStatus is a [Problem].
type ProblemStatus struct {
	Code   string `json:"code"`
	Object string `json:"object,omitempty"`
	Field  string `json:"field,omitempty"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

// Status returns what is in use now.
func (k *Keeper) Status() Status { return k.status(k.Problem()) }

func (k *Keeper) status(problem error) Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := Status{Waiting: k.waiting}
	for _, t := range k.state.bundle {
		r := RootStatus{Fingerprint: t.Fingerprint, Phase: string(t.Phase), Since: t.Since.UTC()}
		if certs, err := parseCertificates([]byte(t.PEM)); err == nil {
			r.Subject, r.NotAfter = certs[0].Subject.String(), certs[0].NotAfter
		}
		s.Roots = append(s.Roots, r)
	}
	if i := k.state.issuer; i != nil {
		s.Issuer = IssuerStatus{
			Origin: string(i.origin), Subject: i.cert.Subject.String(), Serial: i.cert.SerialNumber.Text(16),
			Root: Fingerprint(i.root), NotAfter: i.end(),
		}
	}
	if p, ok := errors.AsType[*Problem](problem); ok {
		s.Problem = &ProblemStatus{Code: string(p.Code), Object: p.Object, Field: p.Field, Detail: p.Detail, Fix: p.Fix}
	} else if problem != nil {
		s.Problem = &ProblemStatus{Code: string(IssuerInvalid), Detail: problem.Error()}
	}
	return s
}

// unpublished tells whether the ConfigMap may lack roots of a state: a node that
// comes back finds its first trust there.
func (k *Keeper) unpublished(s state) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.published != strings.Join(s.bundle.roots(), "")
}

// publish makes the ConfigMap hold the roots in use, and what people see.
func (k *Keeper) publish(ctx context.Context, problem error) error {
	text, err := json.MarshalIndent(k.status(problem), "", "  ")
	if err != nil {
		return err
	}
	k.mu.Lock()
	roots := strings.Join(k.state.bundle.roots(), "")
	k.published = ""
	k.mu.Unlock()
	if err := k.writeConfigMap(ctx, map[string]string{ConfigMapKey: roots, StatusKey: string(text)}); err != nil {
		return err
	}
	k.mu.Lock()
	k.published = roots
	k.mu.Unlock()
	return nil
}

func (k *Keeper) writeConfigMap(ctx context.Context, data map[string]string) error {
	configMaps := k.cfg.Client.CoreV1().ConfigMaps(k.cfg.Namespace)
	present, err := configMaps.Get(ctx, ConfigMapName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err := configMaps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: ConfigMapName, Namespace: k.cfg.Namespace, Labels: map[string]string{"app.kubernetes.io/part-of": "ambit"}},
			Data:       data,
		}, metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	next := present.DeepCopy()
	if next.Data == nil {
		next.Data = map[string]string{}
	}
	maps.Copy(next.Data, data)
	if maps.Equal(next.Data, present.Data) {
		return nil
	}
	_, err = configMaps.Update(ctx, next, metav1.UpdateOptions{})
	return err
}
