package apiserver

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

// target is what a request's path names.
type target struct {
	*kind
	namespace, name, subresource string
}

func (t target) groupResource() schema.GroupResource {
	return schema.GroupResource{Group: t.Group, Resource: t.resource}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.admits(r) {
		s.codec.refuse(w, r, apierrors.NewUnauthorized("a token that this server gave out is required"))
		return
	}
	if r.URL.Path == "/apis/authentication.k8s.io/v1/tokenreviews" && r.Method == http.MethodPost {
		s.review(w, r)
		return
	}
	t, ok := s.find(r.URL.Path)
	if !ok {
		s.codec.refuse(w, r, apierrors.NewGenericServerResponse(http.StatusNotFound, r.Method, schema.GroupResource{}, "", r.URL.Path, 0, true))
		return
	}
	switch {
	case r.Method == http.MethodGet && t.name == "" && r.URL.Query().Get("watch") != "":
		s.watch(w, r, t)
	case r.Method == http.MethodGet && t.name == "":
		s.list(w, r, t)
	case r.Method == http.MethodGet:
		s.get(w, r, t)
	default:
		s.change(w, r, t)
	}
}

func (s *Server) admits(r *http.Request) bool {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	defer s.mu.Unlock()
	subject, known := s.tokens[token]
	return ok && known && subject.Audience == ""
}

// find reads /api/VERSION/... or /apis/GROUP/VERSION/..., then
// [namespaces/NAMESPACE/]RESOURCE[/NAME[/SUBRESOURCE]].
func (s *Server) find(path string) (t target, ok bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	var version schema.GroupVersion
	switch {
	case len(parts) > 2 && parts[0] == "api":
		version, parts = schema.GroupVersion{Version: parts[1]}, parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		version, parts = schema.GroupVersion{Group: parts[1], Version: parts[2]}, parts[3:]
	default:
		return t, false
	}
	if parts[0] == "namespaces" && len(parts) > 2 {
		t.namespace, parts = parts[1], parts[2:]
	}
	t.kind, ok = s.kinds[parts[0]]
	if !ok || t.GroupVersion() != version {
		return t, false
	}
	for i, into := range []*string{&t.name, &t.subresource} {
		if len(parts) > i+1 {
			*into = parts[i+1]
		}
	}
	return t, true
}

// selection is which objects a list or a watch is about.
type selection struct {
	namespace string
	labels    labels.Selector
	fields    fields.Selector
}

func selectionOf(r *http.Request, t target) (selection, error) {
	q := r.URL.Query()
	byLabel, labelErr := labels.Parse(q.Get("labelSelector"))
	byField, fieldErr := fields.ParseSelector(q.Get("fieldSelector"))
	return selection{t.namespace, byLabel, byField}, errors.Join(labelErr, fieldErr)
}

func (s selection) has(object runtime.Object) bool {
	if object == nil {
		return false
	}
	accessor := accessorOf(object)
	known := fields.Set{"metadata.name": accessor.GetName(), "metadata.namespace": accessor.GetNamespace()}
	if pod, ok := object.(*corev1.Pod); ok {
		known["spec.nodeName"] = pod.Spec.NodeName
	}
	return (s.namespace == "" || s.namespace == accessor.GetNamespace()) &&
		s.labels.Matches(labels.Set(accessor.GetLabels())) && s.fields.Matches(known)
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, t target) {
	selected, err := selectionOf(r, t)
	if err != nil {
		s.codec.refuse(w, r, apierrors.NewBadRequest(err.Error()))
		return
	}
	s.mu.Lock()
	version := s.version
	all := t.sortedLocked(t.namespace)
	s.mu.Unlock()
	list, err := s.codec.scheme.New(t.GroupVersion().WithKind(t.Kind + "List"))
	if err == nil {
		err = meta.SetList(list, slices.DeleteFunc(all, func(o runtime.Object) bool { return !selected.has(o) }))
	}
	accessor, ok := list.(metav1.ListInterface)
	if err != nil || !ok {
		s.codec.refuse(w, r, apierrors.NewInternalError(fmt.Errorf("make list: %w", err)))
		return
	}
	accessor.SetResourceVersion(strconv.Itoa(version))
	list.GetObjectKind().SetGroupVersionKind(t.GroupVersion().WithKind(t.Kind + "List"))
	s.codec.write(w, r, http.StatusOK, t.Group, list)
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, t target) {
	s.mu.Lock()
	object, ok := t.objects[key(t.namespace, t.name)]
	s.mu.Unlock()
	if !ok {
		s.codec.refuse(w, r, apierrors.NewNotFound(t.groupResource(), t.name))
		return
	}
	s.codec.write(w, r, http.StatusOK, t.Group, object)
}

// change serves everything that writes.
func (s *Server) change(w http.ResponseWriter, r *http.Request, t target) {
	var into runtime.Object
	gvk := t.GroupVersionKind
	if r.Method == http.MethodDelete {
		into, gvk = &metav1.DeleteOptions{}, metav1.SchemeGroupVersion.WithKind("DeleteOptions")
	}
	body, err := s.codec.read(r, gvk, into)
	if err != nil || body == nil {
		s.codec.refuse(w, r, apierrors.NewBadRequest(fmt.Sprint("no object: ", err)))
		return
	}
	s.mu.Lock()
	answer, refusal := s.changeLocked(r.Method, t, body)
	s.mu.Unlock()
	if refusal != nil {
		s.codec.refuse(w, r, refusal)
		return
	}
	code := http.StatusOK
	if r.Method == http.MethodPost {
		code = http.StatusCreated
	}
	s.codec.write(w, r, code, t.Group, answer)
}

func (s *Server) changeLocked(method string, t target, body runtime.Object) (runtime.Object, *apierrors.StatusError) {
	if method == http.MethodDelete {
		return s.deleteLocked(t, body)
	}
	accessor := accessorOf(body)
	accessor.SetNamespace(t.namespace)
	if t.name != "" {
		accessor.SetName(t.name)
	}
	stored := t.objects[keyOf(body)]
	switch {
	case method == http.MethodPost && stored != nil:
		return nil, apierrors.NewAlreadyExists(t.groupResource(), accessor.GetName())
	case method == http.MethodPut && stored == nil:
		return nil, apierrors.NewNotFound(t.groupResource(), t.name)
	case method == http.MethodPut && accessor.GetResourceVersion() != "" && accessor.GetResourceVersion() != accessorOf(stored).GetResourceVersion():
		return nil, apierrors.NewConflict(t.groupResource(), t.name, errors.New("it has changed since"))
	case method == http.MethodPost || method == http.MethodPut, method == http.MethodPatch: // an apply of all fields there are
	default:
		return nil, apierrors.NewMethodNotSupported(t.groupResource(), method)
	}
	if workload, ok := body.(*v1alpha1.Workload); ok {
		body = withStatusApart(workload, stored, t.subresource == "status")
	}
	s.storeLocked(t.kind, body)
	return body, nil
}

// withStatusApart is what a write of an object with a status subresource means:
// a write of the one leaves the other as it was.
func withStatusApart(body *v1alpha1.Workload, stored runtime.Object, status bool) *v1alpha1.Workload {
	before, ok := stored.(*v1alpha1.Workload)
	switch {
	case !ok:
		body.Status = v1alpha1.WorkloadStatus{}
	case status:
		next := before.DeepCopy()
		next.Status = body.Status
		return next
	default:
		body.Status = before.Status
	}
	return body
}

func (s *Server) deleteLocked(t target, body runtime.Object) (runtime.Object, *apierrors.StatusError) {
	stored, ok := t.objects[key(t.namespace, t.name)]
	if !ok {
		return nil, apierrors.NewNotFound(t.groupResource(), t.name)
	}
	options, _ := body.(*metav1.DeleteOptions)
	if options != nil && options.Preconditions != nil && options.Preconditions.UID != nil && *options.Preconditions.UID != accessorOf(stored).GetUID() {
		return nil, apierrors.NewConflict(t.groupResource(), t.name, errors.New("it has another UID"))
	}
	s.removeLocked(t.kind, keyOf(stored))
	return stored, nil
}

// review tells who bears a token.
func (s *Server) review(w http.ResponseWriter, r *http.Request) {
	body, err := s.codec.read(r, authenticationv1.SchemeGroupVersion.WithKind("TokenReview"), nil)
	asked, ok := body.(*authenticationv1.TokenReview)
	if err != nil || !ok {
		s.codec.refuse(w, r, apierrors.NewBadRequest(fmt.Sprint("no token review: ", err)))
		return
	}
	s.mu.Lock()
	subject, known := s.tokens[asked.Spec.Token]
	s.mu.Unlock()
	if !known || !slices.Contains(asked.Spec.Audiences, subject.Audience) {
		asked.Status = authenticationv1.TokenReviewStatus{Error: "unknown token, or one for another audience"}
	} else {
		asked.Status = authenticationv1.TokenReviewStatus{
			Authenticated: true, Audiences: []string{subject.Audience},
			User: authenticationv1.UserInfo{
				Username: "system:serviceaccount:" + subject.Namespace + ":" + subject.ServiceAccount,
				Extra: map[string]authenticationv1.ExtraValue{
					"authentication.kubernetes.io/pod-name":  {subject.PodName},
					"authentication.kubernetes.io/pod-uid":   {string(subject.PodUID)},
					"authentication.kubernetes.io/node-name": {subject.Node},
				},
			},
		}
	}
	asked.SetGroupVersionKind(authenticationv1.SchemeGroupVersion.WithKind("TokenReview"))
	s.codec.write(w, r, http.StatusCreated, authenticationv1.GroupName, asked)
}
