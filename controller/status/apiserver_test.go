package status

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

const apiPath = "/apis/ambit.mesh/v1alpha1"

var resource = v1alpha1.GroupVersion.WithResource("workloads").GroupResource()

// apiServer keeps Workload objects as the real one does: resource versions,
// conflicts, a status of its own, preconditions, watches.
type apiServer struct {
	url string

	mu        sync.Mutex
	installed bool
	version   int
	objects   map[string]*v1alpha1.Workload // by namespace/name
	history   []event
	changed   chan struct{} // closed and replaced with every event
	writes    []string
	// held keeps events from watchers.
	held bool
	// refuse answers writes in the server's stead, nil lets them pass.
	refuse func(verb string) *apierrors.StatusError
}

type event struct {
	version int
	kind    string
	object  v1alpha1.Workload
}

func newAPIServer(t *testing.T) *apiServer {
	t.Helper()
	s := &apiServer{installed: true, objects: map[string]*v1alpha1.Workload{}, changed: make(chan struct{}), version: 100}
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	s.url = server.URL
	return s
}

func (s *apiServer) client(t *testing.T) *Client {
	t.Helper()
	client, err := NewClient(&rest.Config{Host: s.url})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// get returns an object as it is stored, nil without one.
func (s *apiServer) get(key string) *v1alpha1.Workload {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[key].DeepCopy()
}

// edit changes an object as a person with kubectl would.
func (s *apiServer) edit(key string, change func(*v1alpha1.Workload)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	object := s.objects[key].DeepCopy()
	change(object)
	s.storeLocked("MODIFIED", object)
}

// remove deletes an object as a person with kubectl would.
func (s *apiServer) remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.storeLocked("DELETED", s.objects[key].DeepCopy())
}

// written returns the writes since the last call.
func (s *apiServer) written() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	writes := s.writes
	s.writes = nil
	return writes
}

func (s *apiServer) set(change func(*apiServer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *apiServer) storeLocked(kind string, object *v1alpha1.Workload) {
	s.version++
	object.ResourceVersion = strconv.Itoa(s.version)
	object.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Workload"}
	key := object.Namespace + "/" + object.Name
	if kind == "DELETED" {
		delete(s.objects, key)
	} else {
		s.objects[key] = object
	}
	s.history = append(s.history, event{s.version, kind, *object})
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ours := strings.CutPrefix(r.URL.Path, apiPath+"/")
	s.mu.Lock()
	installed := s.installed
	s.mu.Unlock()
	if !ours || !installed {
		answer(w, apierrors.NewGenericServerResponse(http.StatusNotFound, r.Method, resource, "", "the server could not find the requested resource", 0, true))
		return
	}
	if path == "workloads" && r.URL.Query().Get("watch") != "" {
		s.watch(w, r)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if path == "workloads" {
		s.listLocked(w)
		return
	}
	s.writeLocked(w, r, strings.Split(path, "/"))
}

func (s *apiServer) listLocked(w http.ResponseWriter) {
	list := &v1alpha1.WorkloadList{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "WorkloadList"},
		ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(s.version)},
	}
	for _, object := range s.objects {
		list.Items = append(list.Items, *object)
	}
	reply(w, http.StatusOK, list)
}

// writeLocked serves namespaces/NS/workloads[/NAME[/status]].
func (s *apiServer) writeLocked(w http.ResponseWriter, r *http.Request, path []string) {
	verb := r.Method
	if len(path) == 5 {
		verb = "STATUS"
	}
	if s.refuse != nil {
		if err := s.refuse(verb); err != nil {
			answer(w, err)
			return
		}
	}
	s.writes = append(s.writes, verb)
	var body v1alpha1.Workload
	var options metav1.DeleteOptions
	var into any = &body
	if r.Method == http.MethodDelete {
		into = &options
	}
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		answer(w, apierrors.NewBadRequest(err.Error()))
		return
	}
	if r.Method == http.MethodPost {
		s.createLocked(w, path[1], &body)
		return
	}
	stored, found := s.objects[path[1]+"/"+path[3]]
	switch {
	case !found:
		answer(w, apierrors.NewNotFound(resource, path[3]))
	case r.Method == http.MethodDelete && options.Preconditions != nil && *options.Preconditions.UID != stored.UID:
		answer(w, apierrors.NewConflict(resource, path[3], fmt.Errorf("another UID")))
	case r.Method == http.MethodDelete:
		s.storeLocked("DELETED", stored.DeepCopy())
		reply(w, http.StatusOK, &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusSuccess})
	case body.ResourceVersion != stored.ResourceVersion:
		answer(w, apierrors.NewConflict(resource, path[3], fmt.Errorf("version %s, not %s", stored.ResourceVersion, body.ResourceVersion)))
	default:
		next := stored.DeepCopy()
		if verb == "STATUS" {
			next.Status = body.Status
		} else {
			next.Spec, next.OwnerReferences = body.Spec, body.OwnerReferences
		}
		s.storeLocked("MODIFIED", next)
		reply(w, http.StatusOK, next)
	}
}

func (s *apiServer) createLocked(w http.ResponseWriter, namespace string, object *v1alpha1.Workload) {
	if _, exists := s.objects[namespace+"/"+object.Name]; exists {
		answer(w, apierrors.NewAlreadyExists(resource, object.Name))
		return
	}
	object.Namespace, object.Status = namespace, v1alpha1.WorkloadStatus{}
	object.UID = types.UID(fmt.Sprintf("workload-%d", s.version))
	s.storeLocked("ADDED", object)
	reply(w, http.StatusCreated, object)
}

// watch streams what happened after the version asked for, or everything there
// is first when the client wants that.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	after, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	encoder := json.NewEncoder(w)
	w.Header().Set("Content-Type", "application/json")
	send := func(kind string, object any) {
		_ = encoder.Encode(map[string]any{"type": kind, "object": object})
	}
	s.mu.Lock()
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, object := range s.objects {
			send("ADDED", object)
		}
		after = s.version
		send("BOOKMARK", &v1alpha1.Workload{
			TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Workload"},
			ObjectMeta: metav1.ObjectMeta{
				ResourceVersion: strconv.Itoa(s.version), Annotations: map[string]string{metav1.InitialEventsAnnotationKey: "true"},
			},
		})
	}
	s.mu.Unlock()
	for {
		s.mu.Lock()
		for _, e := range s.history {
			if e.version > after && !s.held {
				after = e.version
				send(e.kind, &e.object)
			}
		}
		changed := s.changed
		s.mu.Unlock()
		_ = http.NewResponseController(w).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func answer(w http.ResponseWriter, err *apierrors.StatusError) {
	status := err.Status()
	status.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	reply(w, int(status.Code), &status)
}

func reply(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object)
}
