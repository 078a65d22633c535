package apiserver

import (
	"context"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/ztunnel/kube"
)

// serve returns the server and the way to it, in a format of Kubernetes.
func serve(t *testing.T, contentType string) (*Server, *rest.Config) {
	t.Helper()
	s := New()
	s.AddToken("token", Subject{Namespace: "ambit-system", ServiceAccount: "controller"})
	listener := httptest.NewServer(s)
	t.Cleanup(func() {
		listener.CloseClientConnections()
		listener.Close()
	})
	return s, &rest.Config{Host: listener.URL, BearerToken: "token", ContentConfig: rest.ContentConfig{
		ContentType: contentType, AcceptContentTypes: contentType + ",application/json",
	}}
}

func clientset(t *testing.T, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: node},
	}
}

func put(t *testing.T, s *Server, pods ...*corev1.Pod) {
	t.Helper()
	for _, p := range pods {
		if err := s.Put(p); err != nil {
			t.Fatal(err)
		}
	}
}

// Both formats give the same objects, to lists, gets and watches.
func TestClientsReadWhatWasPut(t *testing.T) {
	for _, format := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		t.Run(format, func(t *testing.T) {
			s, config := serve(t, format)
			put(t, s, pod("a", "n1"), pod("b", "n1"), pod("c", "n2"))
			pods := clientset(t, config).CoreV1().Pods("")

			list, err := pods.List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=n1", LabelSelector: "app!=b"})
			if err != nil || len(list.Items) != 1 || list.Items[0].Name != "a" || list.Items[0].UID == "" {
				t.Fatalf("%v, %v", list, err)
			}
			watching, err := pods.Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion, FieldSelector: "spec.nodeName=n1"})
			if err != nil {
				t.Fatal(err)
			}
			defer watching.Stop()
			put(t, s, pod("elsewhere", "n2"), pod("d", "n1"), pod("d", "n1"), pod("a", "n2"))
			if err := s.Delete(pod("b", "n1")); err != nil {
				t.Fatal(err)
			}
			for _, want := range []struct {
				kind watch.EventType
				name string
			}{{watch.Added, "d"}, {watch.Modified, "d"}, {watch.Deleted, "a"}, {watch.Deleted, "b"}} {
				e := <-watching.ResultChan()
				if p, ok := e.Object.(*corev1.Pod); !ok || e.Type != want.kind || p.Name != want.name {
					t.Fatalf("%s of %v, want %s of %s", e.Type, e.Object, want.kind, want.name)
				}
			}
		})
	}
}

// An informer gets everything there is, then what happens.
func TestInformer(t *testing.T) {
	s, config := serve(t, "application/json")
	put(t, s, pod("a", "n1"), pod("b", "n2"))
	client, err := kube.New(config)
	if err != nil {
		t.Fatal(err)
	}
	informer := cache.NewSharedIndexInformer(client.Pods("spec.nodeName=n1", ""), &corev1.Pod{}, 0, cache.Indexers{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		informer.RunWithContext(ctx)
	}()
	defer func() {
		cancel()
		<-done
	}()
	if !cache.WaitForCacheSync(t.Context().Done(), informer.HasSynced) || len(informer.GetStore().List()) != 1 {
		t.Fatalf("%v", informer.GetStore().ListKeys())
	}
	put(t, s, pod("c", "n1"))
	for start := time.Now(); len(informer.GetStore().List()) != 2; time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%v", informer.GetStore().ListKeys())
		}
	}
	if p, err := client.Pod(t.Context(), "shop", "a"); err != nil || p.Spec.NodeName != "n1" {
		t.Errorf("%v, %v", p, err)
	}
	if _, err := client.Namespace(t.Context(), "none"); !apierrors.IsNotFound(err) {
		t.Errorf("%v, want not found", err)
	}
}

func TestWritesConflictAsInKubernetes(t *testing.T) {
	_, config := serve(t, "application/vnd.kubernetes.protobuf")
	secrets := clientset(t, config).CoreV1().Secrets("shop")
	first, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := secrets.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}}, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("%v, want it to exist", err)
	}
	if _, err := secrets.Update(t.Context(), first, metav1.UpdateOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := secrets.Update(t.Context(), first, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("%v, want a conflict", err)
	}
	if err := secrets.Delete(t.Context(), "s", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := secrets.Get(t.Context(), "s", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("%v, want not found", err)
	}
}

// A watch that is too far behind is told so: its client lists anew.
func TestOldVersionsAreForgotten(t *testing.T) {
	s, config := serve(t, "application/json")
	for i := range 2*historyLength + 1 {
		put(t, s, pod(strconv.Itoa(i%10), "n1"))
	}
	watching, err := clientset(t, config).CoreV1().Pods("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: "1"})
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	e := <-watching.ResultChan()
	if status, ok := e.Object.(*metav1.Status); !ok || e.Type != watch.Error || status.Reason != metav1.StatusReasonExpired {
		t.Errorf("%v", e)
	}
}

func TestTokens(t *testing.T) {
	s, config := serve(t, "application/vnd.kubernetes.protobuf")
	s.AddToken("other", Subject{Namespace: "ambit-system", ServiceAccount: "ztunnel", PodName: "z", Node: "n1", Audience: "ambit-ca"})
	reviews := clientset(t, config).AuthenticationV1().TokenReviews()
	for _, test := range []struct {
		token, audience string
		want            bool
	}{{"other", "ambit-ca", true}, {"other", "another", false}, {"unknown", "ambit-ca", false}} {
		answer, err := reviews.Create(t.Context(), &authenticationv1.TokenReview{
			Spec: authenticationv1.TokenReviewSpec{Token: test.token, Audiences: []string{test.audience}},
		}, metav1.CreateOptions{})
		if err != nil || answer.Status.Authenticated != test.want {
			t.Errorf("token %s for %s: %v, %v", test.token, test.audience, answer, err)
		}
	}
	config.BearerToken = "other" // for another audience than this server
	if _, err := clientset(t, config).CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("%v, want unauthorized", err)
	}
}
