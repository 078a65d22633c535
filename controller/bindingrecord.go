package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/ambit-mesh/ambit/controller/translate"
)

const (
	// bindingsConfigMap is where the next leader finds how far bindings are.
	bindingsConfigMap = "ambit-bindings"
	// bindingsKey is its one key; the value is bindingsFile as JSON.
	bindingsKey = "bindings.json"
	// bindingsSignatureKey of the value's signature, by whoever issues certificates.
	bindingsSignatureKey = "signature"
	// maxBindingsBytes of the value: Kubernetes takes no object of more than 1 MiB.
	maxBindingsBytes = 900 << 10
)

// recordedBinding is how far one is, for the next leader.
type recordedBinding struct {
	Kind      string          `json:"kind"`
	Namespace string          `json:"namespace"`
	Name      string          `json:"name"`
	Waypoint  string          `json:"waypoint"` // namespace/name
	From      string          `json:"from,omitempty"`
	Stage     translate.Stage `json:"stage"`
	Leaving   bool            `json:"leaving,omitempty"`
}

// settled ones are what everybody takes those for that are not recorded.
func (r recordedBinding) settled() bool {
	return r.Stage == translate.Enforced && r.From == "" && !r.Leaving
}

// bindingsFile is all that the next leader finds.
type bindingsFile struct {
	Bindings []recordedBinding `json:"bindings"`
	// Partial: there was no room for those that are enforced.
	Partial bool `json:"partial,omitempty"`
}

// encodeBindings writes them in one order.
func encodeBindings(all []recordedBinding, most int) (string, error) {
	slices.SortFunc(all, func(a, b recordedBinding) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name), strings.Compare(a.Kind, b.Kind))
	})
	text, err := json.Marshal(bindingsFile{Bindings: all})
	if err != nil || len(text) <= most {
		return string(text), err
	}
	moving := slices.DeleteFunc(slices.Clone(all), recordedBinding.settled)
	if text, err = json.Marshal(bindingsFile{Bindings: moving, Partial: true}); err == nil && len(text) > most {
		return "", fmt.Errorf("%d bindings are on their way, more than one object can hold", len(moving))
	}
	return string(text), err
}

// decodeBindings reads them; what makes no sense is an error.
func decodeBindings(text string) (file bindingsFile, err error) {
	if err := json.Unmarshal([]byte(text), &file); err != nil {
		return bindingsFile{}, err
	}
	if file.Bindings == nil {
		return bindingsFile{}, errors.New("no list of bindings")
	}
	known := make(map[translate.Target]bool, len(file.Bindings))
	for _, r := range file.Bindings {
		t := translate.Target{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}
		if known[t] {
			return bindingsFile{}, fmt.Errorf("%s %s/%s is there twice", r.Kind, r.Namespace, r.Name)
		}
		known[t] = true
		if r.Kind == "" || r.Name == "" || r.Stage < translate.Announced || r.Stage > translate.Enforced || parseName(r.Waypoint).Name == "" ||
			r.From != "" && parseName(r.From).Name == "" {
			return bindingsFile{}, fmt.Errorf("%s %s/%s: not a binding", r.Kind, r.Namespace, r.Name)
		}
	}
	return file, nil
}

// parseName reads namespace/name; a zero one if it is none.
func parseName(text string) types.NamespacedName {
	namespace, name, _ := strings.Cut(text, "/")
	return types.NamespacedName{Namespace: namespace, Name: name}
}

// formatName writes namespace/name, and nothing for a zero one.
func formatName(n types.NamespacedName) string {
	if n.Name == "" {
		return ""
	}
	return n.String()
}

// recordSigner is the mesh's authority.
type recordSigner interface {
	SignRecord(name string, text []byte) (signature []byte, err error)
	CheckRecord(name string, text, signature []byte) error
}

// bindingsObject is the record as a ConfigMap. It is signed: who may write ConfigMaps
// cannot have what is enforced taken for something else.
type bindingsObject struct {
	client coreclient.ConfigMapInterface
	signer recordSigner
	// leads asks who holds the Lease; it is an error unless this process does.
	leads  func(ctx context.Context) error
	logger *slog.Logger
	// found says whether there was an object when it was last read or written, and version
	// which: what a leader that is deposed writes late replaces nothing. Owned by whoever leads.
	found   bool
	version string
}

// read returns what the leader before wrote; empty if there is nothing that it signed.
func (o *bindingsObject) read(ctx context.Context) (string, error) {
	found, err := o.client.Get(ctx, bindingsConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		o.found, o.version = false, ""
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read ConfigMap %s: %w", bindingsConfigMap, err)
	}
	o.found, o.version = true, found.ResourceVersion
	text := found.Data[bindingsKey]
	if err := o.signer.CheckRecord(bindingsConfigMap, []byte(text), found.BinaryData[bindingsSignatureKey]); err != nil {
		o.logger.Error("how far bindings are is not what a leader wrote: all are enforced at once", "configmap", bindingsConfigMap, "error", err)
		return "", nil
	}
	return text, nil
}

// write replaces what was read or written last. If somebody else wrote it meanwhile, that is an
// error, and the next attempt replaces theirs, unless they are the next leader.
func (o *bindingsObject) write(ctx context.Context, text string) error {
	signature, err := o.signer.SignRecord(bindingsConfigMap, []byte(text))
	if err != nil {
		return err
	}
	object := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Name: bindingsConfigMap, ResourceVersion: o.version, Labels: map[string]string{"app.kubernetes.io/part-of": "ambit"},
		},
		Data: map[string]string{bindingsKey: text}, BinaryData: map[string][]byte{bindingsSignatureKey: signature},
	}
	put := func() (*corev1.ConfigMap, error) { return o.client.Update(ctx, object, metav1.UpdateOptions{}) }
	if !o.found {
		put = func() (*corev1.ConfigMap, error) { return o.client.Create(ctx, object, metav1.CreateOptions{}) }
	}
	written, err := put()
	if err == nil {
		o.found, o.version = true, written.ResourceVersion
		return nil
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) {
		err = errors.Join(err, o.catchUp(ctx))
	}
	return fmt.Errorf("write ConfigMap %s: %w", bindingsConfigMap, err)
}

// catchUp has the next write replace what somebody else wrote. The Lease is asked for after
// that was read: if it was the next leader who wrote it, the Lease is not this process's by
// then, and what it writes goes on being refused.
func (o *bindingsObject) catchUp(ctx context.Context) error {
	found, version := o.found, o.version
	if _, err := o.read(ctx); err != nil {
		return err
	}
	if err := o.leads(ctx); err != nil {
		o.found, o.version = found, version
		return err
	}
	return nil
}
