package ca

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/quota"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Audience that a token must be made for. One for the API server, or for
// anybody else, must not open this door.
const Audience = "ambit-ca"

const (
	// reviewLifetime is how long a token's review counts: a node renews many
	// certificates in a row, and a token that was withdrawn meanwhile gains
	// no more than that.
	reviewLifetime = 30 * time.Second
	// maxReviews bounds the cache; a mesh has one token a data plane.
	maxReviews = 4096
	// maxTokenBytes: projected tokens are about 1 KiB.
	maxTokenBytes = 16 << 10
	// reviewsPerAddress and reviewsAtOnce bound what a flood of bad tokens asks of
	// the API server. A data plane calls a dozen times at once when it starts; who
	// floods makes room for others.
	reviewsPerAddress = 16
	reviewsAtOnce     = 64
	// refusalsPerSecond are the refused calls that are logged, and refusalBurst how
	// many at once: a flood of them must not fill the node's disk.
	refusalsPerSecond = 10
	refusalBurst      = 200
	// reviewTimeout for one question to the API server.
	reviewTimeout = 10 * time.Second
)

// The extras of a projected token's review, from Kubernetes 1.32 on.
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

// Peer is who called, as the API server vouches for it.
type Peer struct {
	Namespace, ServiceAccount string
	PodName, PodUID           string
	// Node that the pod's token is bound to.
	Node string
}

// Identity is the peer's own identity in a trust domain.
func (p Peer) Identity(trustDomain string) spiffe.ID {
	return spiffe.ID{TrustDomain: trustDomain, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount}
}

// LogValue makes a group of the peer.
func (p Peer) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("namespace", p.Namespace), slog.String("service_account", p.ServiceAccount),
		slog.String("pod", p.PodName), slog.String("uid", p.PodUID), slog.String("node", p.Node))
}

// TokenReviews asks the API server about a token; client-go's
// TokenReviewInterface is one.
type TokenReviews interface {
	Create(context.Context, *authenticationv1.TokenReview, metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

// AuthenticatorConfig is what an [Authenticator] needs.
type AuthenticatorConfig struct {
	Reviews TokenReviews
	// Now is the clock, time.Now when nil.
	Now    func() time.Time
	Logger *slog.Logger
}

// Authenticator finds out who calls.
type Authenticator struct {
	cfg     AuthenticatorConfig
	reviews *quota.Door[netip.Addr] // questions under way, by who caused them
	logging *rate.Limiter

	mu    sync.Mutex
	cache map[[sha256.Size]byte]review // guarded by mu; by the token's hash
}

type review struct {
	peer    Peer
	expires time.Time
}

// NewAuthenticator returns an authenticator that knows nobody yet.
func NewAuthenticator(cfg AuthenticatorConfig) *Authenticator {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Authenticator{cfg: cfg, reviews: quota.NewDoor[netip.Addr](reviewsPerAddress, reviewsAtOnce),
		logging: rate.NewLimiter(refusalsPerSecond, refusalBurst), cache: map[[sha256.Size]byte]review{}}
}

// errRefused is all that a caller without a good token gets to know.
var errRefused = status.Error(codes.Unauthenticated, "a service account token for audience "+Audience+" is required")

// Authenticate returns who made an incoming gRPC call. The error is a gRPC
// status: Unauthenticated, or Unavailable when the API server did not answer.
func (a *Authenticator) Authenticate(ctx context.Context) (Peer, error) {
	token, err := bearer(ctx)
	if err != nil {
		a.refused(ctx, "refused call", "reason", err)
		return Peer{}, errRefused
	}
	hash := sha256.Sum256([]byte(token))
	if peer, ok := a.cached(hash); ok {
		return peer, nil
	}
	answer, err := a.ask(ctx, token)
	if err != nil {
		a.refused(ctx, "review token", "error", err)
		return Peer{}, status.Error(codes.Unavailable, "tokens cannot be reviewed now")
	}
	peer, err := readReview(answer)
	if err != nil {
		a.refused(ctx, "refused token", "reason", err, "user", answer.User.Username)
		return Peer{}, errRefused
	}
	a.remember(hash, peer)
	return peer, nil
}

// refused logs, unless too many are.
func (a *Authenticator) refused(ctx context.Context, message string, args ...any) {
	if a.logging.Allow() {
		a.cfg.Logger.Warn(message, append(args, "from", callerOf(ctx))...)
	}
}

// callerOf is the address of an incoming call; the zero Addr if it has none.
func callerOf(ctx context.Context) netip.Addr {
	if from, ok := peer.FromContext(ctx); ok {
		return quota.AddrOf(from.Addr)
	}
	return netip.Addr{}
}

var errCrowd = errors.New("too many calls of this address at once")

// bearer returns the only token of an incoming call.
func bearer(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 {
		return "", fmt.Errorf("%d authorization headers, one is required", len(values))
	}
	scheme, token, found := strings.Cut(values[0], " ")
	if !found || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", errors.New("no bearer token")
	}
	if len(token) > maxTokenBytes {
		return "", fmt.Errorf("a token of %d bytes", len(token))
	}
	return token, nil
}

func (a *Authenticator) ask(ctx context.Context, token string) (authenticationv1.TokenReviewStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	leave, ok := a.reviews.Enter(callerOf(ctx), cancel)
	if !ok {
		return authenticationv1.TokenReviewStatus{}, errCrowd
	}
	defer leave()
	answer, err := a.cfg.Reviews.Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{Audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.TokenReviewStatus{}, err
	}
	return answer.Status, nil
}

// readReview returns the pod that a review vouches for.
func readReview(answer authenticationv1.TokenReviewStatus) (Peer, error) {
	if !answer.Authenticated {
		return Peer{}, fmt.Errorf("the API server does not accept it: %s", answer.Error)
	}
	// An API server that does not know audiences answers with none: its word
	// is not about our audience.
	if !slices.Contains(answer.Audiences, Audience) {
		return Peer{}, fmt.Errorf("it is for audiences %q", answer.Audiences)
	}
	rest, isServiceAccount := strings.CutPrefix(answer.User.Username, "system:serviceaccount:")
	namespace, account, two := strings.Cut(rest, ":")
	if !isServiceAccount || !two || namespace == "" || account == "" || strings.Contains(account, ":") {
		return Peer{}, errors.New("it is not a service account's")
	}
	peer := Peer{Namespace: namespace, ServiceAccount: account}
	for key, field := range map[string]*string{extraPodName: &peer.PodName, extraPodUID: &peer.PodUID, extraNodeName: &peer.Node} {
		values := answer.User.Extra[key]
		if len(values) != 1 || values[0] == "" {
			return Peer{}, fmt.Errorf("it is not bound to a pod on a node: %d values of %s", len(values), key)
		}
		*field = values[0]
	}
	return peer, nil
}

func (a *Authenticator) cached(hash [sha256.Size]byte) (Peer, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known, ok := a.cache[hash]
	if !ok || !a.cfg.Now().Before(known.expires) {
		return Peer{}, false
	}
	return known.peer, true
}

func (a *Authenticator) remember(hash [sha256.Size]byte, peer Peer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.cfg.Now()
	if len(a.cache) >= maxReviews {
		a.makeRoomLocked(now)
	}
	a.cache[hash] = review{peer: peer, expires: now.Add(reviewLifetime)}
}

// makeRoomLocked drops what is over, and if that is nothing, any one review:
// it only costs a question.
func (a *Authenticator) makeRoomLocked(now time.Time) {
	for hash, known := range a.cache {
		if !now.Before(known.expires) {
			delete(a.cache, hash)
		}
	}
	for hash := range a.cache {
		if len(a.cache) < maxReviews {
			return
		}
		delete(a.cache, hash)
	}
}
