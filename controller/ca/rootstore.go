package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// SecretName is the Secret with the root and its key.
	SecretName = "ambit-ca"
	// ConfigMapName is the ConfigMap from which nodes take their first trust.
	ConfigMapName = "ambit-ca-root"
	// ConfigMapKey is the field of that ConfigMap.
	ConfigMapKey = "root-cert.pem"
)

// openRetry is how often an unusable root is looked at again: soon enough that
// whoever repairs the Secret sees it work.
const openRetry = 2 * time.Second

// RootStoreConfig is what a [RootStore] needs.
type RootStoreConfig struct {
	Client kubernetes.Interface
	// Namespace of the Secret and the ConfigMap.
	Namespace string
	// TrustDomain for the subject of a new root.
	TrustDomain string
	// Now is the clock, time.Now when nil.
	Now        func() time.Time
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// RootStore keeps the root in its Secret.
type RootStore struct {
	cfg     RootStoreConfig
	problem *prometheus.GaugeVec
	expiry  prometheus.Gauge

	mu      sync.Mutex
	root    *Root  // guarded by mu; nil before it is known
	current error  // guarded by mu; what is wrong now
	logged  string // guarded by mu; its text, so that each trouble is logged once
}

// NewRootStore returns a store that has read nothing yet.
func NewRootStore(cfg RootStoreConfig) *RootStore {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &RootStore{
		cfg: cfg,
		problem: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ambit_ca_root_problem", Help: "1 for what is wrong with the root now, by code.",
		}, []string{"code"}),
		expiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ambit_ca_root_expiry_timestamp_seconds", Help: "End of the root's validity.",
		}),
		current: errors.New("the root has not been read yet"),
	}
	for _, code := range rootCodes {
		s.problem.WithLabelValues(string(code)).Set(0)
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(s.problem, s.expiry)
	}
	return s
}

// Problem returns what is wrong with the root, nil when all is well. Before
// [RootStore.Open] returned it is never nil.
func (s *RootStore) Problem() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// Open returns the root, making one if there is none. It tries again until it
// has one or ctx ends; [RootStore.Problem] tells what it waits for.
func (s *RootStore) Open(ctx context.Context) (*Root, error) {
	for {
		root, err := s.load(ctx)
		if err == nil {
			s.adopt(root)
			s.report(nil)
			return root, nil
		}
		s.report(err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(openRetry):
		}
	}
}

// load reads the root or creates it.
func (s *RootStore) load(ctx context.Context) (*Root, error) {
	root, err := s.read(ctx)
	if err == nil || !apierrors.IsNotFound(err) {
		return root, err
	}
	if err := s.refuseIfPublished(ctx); err != nil {
		// Another replica may have created both since the read above.
		if root, again := s.read(ctx); again == nil || !apierrors.IsNotFound(again) {
			return root, again
		}
		return nil, err
	}
	root, err = newRoot(s.cfg.TrustDomain, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	switch err := s.create(ctx, root); {
	case apierrors.IsAlreadyExists(err):
		// Theirs counts.
		return s.read(ctx)
	case err != nil:
		return nil, s.unreadable("create", err)
	}
	s.cfg.Logger.Info("created root", "secret", s.secret(), "not_after", root.cert.NotAfter)
	return root, nil
}

// read returns the root in the Secret. The error is a *Problem, or NotFound.
func (s *RootStore) read(ctx context.Context) (*Root, error) {
	secret, err := s.cfg.Client.CoreV1().Secrets(s.cfg.Namespace).Get(ctx, SecretName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, err
	case err != nil:
		return nil, s.unreadable("read", err)
	}
	root, problem := parseRoot(secret.Data, s.cfg.Now())
	if problem != nil {
		problem.Object = "Secret " + s.secret()
		problem.Fix = "restore the Secret from a backup; or, to start over with a new root that no running workload trusts yet, " +
			"delete the Secret and the ConfigMap " + s.configMap()
		return nil, problem
	}
	return root, nil
}

// create writes the Secret; AlreadyExists when there is one.
func (s *RootStore) create(ctx context.Context, root *Root) error {
	_, err := s.cfg.Client.CoreV1().Secrets(s.cfg.Namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: SecretName, Namespace: s.cfg.Namespace,
			Labels: map[string]string{"app.kubernetes.io/part-of": "ambit"},
		},
		Type: corev1.SecretTypeTLS,
		Data: root.fields(),
	}, metav1.CreateOptions{})
	return err
}

// refuseIfPublished returns RootLost when data planes already trust a root: a
// new one would split the mesh in two without anybody having asked for it.
func (s *RootStore) refuseIfPublished(ctx context.Context) error {
	published, err := s.cfg.Client.CoreV1().ConfigMaps(s.cfg.Namespace).Get(ctx, ConfigMapName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return s.unreadable("read the ConfigMap beside", err)
	case published.Data[ConfigMapKey] == "":
		return nil
	}
	return &Problem{
		Code:   RootLost,
		Object: "Secret " + s.secret(),
		Detail: "it is gone, while the ConfigMap " + s.configMap() + " still holds a root that the mesh trusts",
		Fix:    "restore the Secret from a backup; or delete the ConfigMap to accept a new root, after which every workload needs a new certificate",
	}
}

func (s *RootStore) unreadable(verb string, err error) *Problem {
	return &Problem{
		Code:   RootUnreadable,
		Object: "Secret " + s.secret(),
		Detail: fmt.Sprintf("cannot %s it: %v", verb, err),
		Fix:    "check the API server and the controller's permissions; it is tried again",
		cause:  err,
	}
}

// report makes err the present problem; nil says all is well.
func (s *RootStore) report(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = err
	for _, code := range rootCodes {
		s.problem.WithLabelValues(string(code)).Set(0)
	}
	text := ""
	if problem, ok := errors.AsType[*Problem](err); ok {
		s.problem.WithLabelValues(string(problem.Code)).Set(1)
	}
	if err != nil {
		text = err.Error()
	}
	if text == s.logged {
		return
	}
	s.logged = text
	if err != nil {
		s.cfg.Logger.Error("root needs attention", "error", err)
	} else {
		s.cfg.Logger.Info("root is well")
	}
}

func (s *RootStore) secret() string    { return s.cfg.Namespace + "/" + SecretName }
func (s *RootStore) configMap() string { return s.cfg.Namespace + "/" + ConfigMapName }
