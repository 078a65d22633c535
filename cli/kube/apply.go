package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
)

const fieldManager = "ambit"

// Objects decodes a YAML stream.
func Objects(manifests []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	for decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifests), 4096); ; {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, fmt.Errorf("decode manifests: %w", err)
		}
		if len(object.Object) > 0 {
			objects = append(objects, object)
		}
	}
}

// Name is an object as messages name it: `deployment ambit-system/controller`.
func Name(object *unstructured.Unstructured) string {
	if object.GetNamespace() == "" {
		return object.GetKind() + " " + object.GetName()
	}
	return object.GetKind() + " " + object.GetNamespace() + "/" + object.GetName()
}

// Apply applies every object of the stream on the server, in its order.
func (c *Cluster) Apply(ctx context.Context, manifests []byte) error {
	objects, err := Objects(manifests)
	if err != nil {
		return err
	}
	for _, object := range objects {
		resource, err := c.resource(object)
		if err != nil {
			return err
		}
		body, err := json.Marshal(object)
		if err != nil {
			return err
		}
		force := true
		if _, err := resource.Patch(ctx, object.GetName(), types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: fieldManager, Force: &force}); err != nil {
			return fmt.Errorf("apply %s: %w", Name(object), err)
		}
	}
	return nil
}

// Delete removes every object of the stream, last first, and their dependents.
// What is not there is no error. It returns the names of what was removed.
func (c *Cluster) Delete(ctx context.Context, manifests []byte) ([]string, error) {
	objects, err := Objects(manifests)
	if err != nil {
		return nil, err
	}
	var removed []string
	for i := len(objects) - 1; i >= 0; i-- {
		resource, err := c.resource(objects[i])
		if meta.IsNoMatchError(err) {
			continue
		}
		if err != nil {
			return removed, err
		}
		foreground := metav1.DeletePropagationForeground
		err = resource.Delete(ctx, objects[i].GetName(), metav1.DeleteOptions{PropagationPolicy: &foreground})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return removed, fmt.Errorf("delete %s: %w", Name(objects[i]), err)
		}
		removed = append(removed, Name(objects[i]))
	}
	return removed, nil
}

// Present returns which objects of the stream the cluster has.
func (c *Cluster) Present(ctx context.Context, manifests []byte) ([]string, error) {
	objects, err := Objects(manifests)
	if err != nil {
		return nil, err
	}
	var present []string
	for _, object := range objects {
		resource, err := c.resource(object)
		if meta.IsNoMatchError(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		_, err = resource.Get(ctx, object.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("get %s: %w", Name(object), err)
		}
		present = append(present, Name(object))
	}
	return present, nil
}

func (c *Cluster) resource(object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := object.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, fmt.Errorf("find the resource of %s: %w", Name(object), err)
	}
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return c.Dynamic.Resource(mapping.Resource).Namespace(object.GetNamespace()), nil
	}
	return c.Dynamic.Resource(mapping.Resource), nil
}
