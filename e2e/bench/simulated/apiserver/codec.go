package apiserver

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	kubernetes "k8s.io/client-go/kubernetes/scheme"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

// maxBodyBytes of a request: a real server's limit is 3 MiB.
const maxBodyBytes = 3 << 20

// codec reads and writes objects in the formats of Kubernetes.
type codec struct {
	scheme  *runtime.Scheme
	factory serializer.CodecFactory
}

func newCodec() codec {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{kubernetes.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err) // two types under one name: a mistake of the libraries
		}
	}
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	return codec{scheme: scheme, factory: serializer.NewCodecFactory(scheme)}
}

// accepted returns the first format of the client's list that there is. Custom
// resources have no protobuf.
func (c codec) accepted(r *http.Request, group string) runtime.SerializerInfo {
	for accepted := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		mediaType, _, _ := strings.Cut(strings.TrimSpace(accepted), ";")
		info, ok := runtime.SerializerInfoForMediaType(c.factory.SupportedMediaTypes(), mediaType)
		if ok && mediaType != "" && (mediaType == runtime.ContentTypeJSON || mediaType == runtime.ContentTypeProtobuf && group != v1alpha1.GroupVersion.Group) {
			return info
		}
	}
	info, _ := runtime.SerializerInfoForMediaType(c.factory.SupportedMediaTypes(), runtime.ContentTypeJSON)
	return info
}

// read decodes a request's body into an object of the kind that is meant.
func (c codec) read(r *http.Request, gvk schema.GroupVersionKind, into runtime.Object) (runtime.Object, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBodyBytes))
	if err != nil {
		return nil, fmt.Errorf("read body: %w", err)
	}
	if len(body) == 0 {
		return into, nil
	}
	object, _, err := c.factory.UniversalDeserializer().Decode(body, &gvk, into)
	if err != nil {
		return nil, fmt.Errorf("decode body: %w", err)
	}
	return object, nil
}

// write answers with an object that bears its kind. Stored objects are encoded
// as they are, by many at once: the library's versioning encoders would write
// to them.
func (c codec) write(w http.ResponseWriter, r *http.Request, code int, group string, object runtime.Object) {
	info := c.accepted(r, group)
	w.Header().Set("Content-Type", info.MediaType)
	w.WriteHeader(code)
	// A client that went away is its own affair.
	_ = info.Serializer.Encode(object, w)
}

// refuse answers with an error.
func (c codec) refuse(w http.ResponseWriter, r *http.Request, err *apierrors.StatusError) {
	status := statusOf(err)
	c.write(w, r, int(status.Code), "", status)
}

func statusOf(err *apierrors.StatusError) *metav1.Status {
	status := err.Status()
	status.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	return &status
}
