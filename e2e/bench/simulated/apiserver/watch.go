package apiserver

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// stream writes one watch's events.
type stream struct {
	envelope runtime.Encoder
	objects  runtime.Encoder
	frames   interface{ Write([]byte) (int, error) }
	flush    func() error
}

func (s *Server) newStream(w http.ResponseWriter, r *http.Request, t target) *stream {
	info := s.codec.accepted(r, t.Group)
	mediaType := info.MediaType
	if mediaType != runtime.ContentTypeJSON {
		mediaType += ";stream=watch"
	}
	w.Header().Set("Content-Type", mediaType)
	w.WriteHeader(http.StatusOK)
	return &stream{
		envelope: info.StreamSerializer.Serializer,
		objects:  info.Serializer,
		frames:   info.StreamSerializer.Framer.NewFrameWriter(w),
		flush:    http.NewResponseController(w).Flush,
	}
}

func (s *stream) send(kind watch.EventType, object runtime.Object) error {
	var inner, outer bytes.Buffer
	if err := s.objects.Encode(object, &inner); err != nil {
		return fmt.Errorf("encode object: %w", err)
	}
	event := &metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: inner.Bytes()}}
	if err := s.envelope.Encode(event, &outer); err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	_, err := s.frames.Write(outer.Bytes())
	return err
}

// watch streams what happened after the version that is asked for, or
// everything there is first, where the client wants that.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, t target) {
	selected, err := selectionOf(r, t)
	after, versionErr := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	initial := r.URL.Query().Get("sendInitialEvents") == "true"
	if err != nil || versionErr != nil && !initial {
		s.codec.refuse(w, r, apierrors.NewBadRequest(fmt.Sprint("watch: ", err, versionErr)))
		return
	}
	out := s.newStream(w, r, t)
	if initial {
		if after, err = s.sendAll(out, t, selected); err != nil {
			return
		}
	}
	for {
		events, changed, tooOld := s.since(after)
		if tooOld {
			_ = out.send(watch.Error, statusOf(apierrors.NewResourceExpired("the version is too old")))
			return
		}
		for _, e := range events {
			after = e.version
			if err := out.follow(e, t.resource, selected); err != nil {
				return
			}
		}
		if out.flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// sendAll sends all objects, and that these were all. It returns their version.
func (s *Server) sendAll(out *stream, t target, selected selection) (version int, err error) {
	s.mu.Lock()
	version = s.version
	all := t.sortedLocked(t.namespace)
	s.mu.Unlock()
	for _, object := range all {
		if selected.has(object) {
			if err := out.send(watch.Added, object); err != nil {
				return 0, err
			}
		}
	}
	end, err := s.codec.scheme.New(t.GroupVersionKind)
	if err != nil {
		return 0, err
	}
	end.GetObjectKind().SetGroupVersionKind(t.GroupVersionKind)
	accessor := accessorOf(end)
	accessor.SetResourceVersion(strconv.Itoa(version))
	accessor.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	return version, out.send(watch.Bookmark, end)
}

// since returns what happened after a version, and what closes when more does.
func (s *Server) since(version int) (events []event, changed <-chan struct{}, tooOld bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if version < s.forgotten {
		return nil, nil, true
	}
	first := sort.Search(len(s.history), func(i int) bool { return s.history[i].version > version })
	return slices.Clone(s.history[first:]), s.changed, false
}

// follow sends a change as the watcher has to see it: to it, an object that no
// longer is among the selected ones is gone.
func (s *stream) follow(e event, resource string, selected selection) error {
	if e.resource != resource {
		return nil
	}
	switch was, is := selected.has(e.old), selected.has(e.now); {
	case !was && is:
		return s.send(watch.Added, e.now)
	case was && is:
		return s.send(watch.Modified, e.now)
	case was:
		gone := e.old.DeepCopyObject()
		accessorOf(gone).SetResourceVersion(strconv.Itoa(e.version))
		return s.send(watch.Deleted, gone)
	}
	return nil
}
