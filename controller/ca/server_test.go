package ca

import (
	"context"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	caapi "github.com/ambit-mesh/ambit/api/ca"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// basicConstraintsCA asks for a certificate that may sign others.
var basicConstraintsCA = pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}

func podOf(namespace, name, uid, account, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{ServiceAccountName: account, NodeName: node},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

// mesh is a certificate service over a cluster.
type mesh struct {
	connection *grpc.ClientConn
	log        lockedBuffer
	metrics    *prometheus.Registry
	client     caapi.IstioCertificateServiceClient
	api        *apiServer
	pods       *Pods
}

func (m *mesh) add(t *testing.T, pods ...*corev1.Pod) {
	t.Helper()
	for _, pod := range pods {
		if err := m.pods.indexer.Add(pod); err != nil {
			t.Fatal(err)
		}
	}
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	pods, err := NewPods(informers.NewSharedInformerFactory(fake.NewClientset(), 0).Core().V1().Pods())
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{api: &apiServer{tokens: map[string]authenticationv1.TokenReviewStatus{}}, pods: pods, metrics: prometheus.NewRegistry()}
	m.add(t,
		podOf(system, "ztunnel-1", "uid-z1", "ztunnel", "n1"), podOf(system, "ztunnel-2", "uid-z2", "ztunnel", "n2"),
		podOf("shop", "cart-1", "uid-c1", "cart", "n1"), podOf("shop", "pay-1", "uid-p1", "pay", "n2"))
	authority := authorityOf(t, testRoot(t), func() time.Time { return start })
	server := grpc.NewServer()
	NewServer(ServerConfig{
		Authority: authority, Pods: pods, SystemNamespace: system, Logger: slog.New(slog.NewJSONHandler(&m.log, nil)), Registerer: m.metrics,
		Authenticator: NewAuthenticator(AuthenticatorConfig{Reviews: m.api, Logger: quiet()}),
	}).Register(server)
	listener := bufconn.Listen(1 << 16)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	connection, err := grpc.NewClient("passthrough:///mesh", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	m.connection = connection
	m.client = caapi.NewIstioCertificateServiceClient(connection)
	return m
}

// ask requests a certificate as a peer; identity is the one in the metadata,
// none if empty.
func (m *mesh) ask(t *testing.T, peer Peer, identity string, request *caapi.IstioCertificateRequest) (*caapi.IstioCertificateResponse, error) {
	t.Helper()
	token := t.Name() + peer.PodUID + peer.ServiceAccount + peer.Node
	m.api.tokens[token] = tokenOf(peer)
	if identity != "" {
		value, err := structpb.NewStruct(map[string]any{"ImpersonatedIdentity": identity})
		if err != nil {
			t.Fatal(err)
		}
		request.Metadata = value
	}
	return m.client.CreateCertificate(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token), request)
}

func (m *mesh) askFor(t *testing.T, peer Peer, identity string) (*caapi.IstioCertificateResponse, error) {
	t.Helper()
	named, err := url.Parse(identity)
	if err != nil || identity == "" {
		named = peer.Identity(trustDomain).URL()
	}
	return m.ask(t, peer, identity, &caapi.IstioCertificateRequest{Csr: csr(t, ecKey(t, elliptic.P256()), x509.CertificateRequest{URIs: []*url.URL{named}})})
}

func identityIn(t *testing.T, response *caapi.IstioCertificateResponse) string {
	t.Helper()
	id, err := spiffe.FromCertificate(parsePEM(t, response.GetCertChain()[0]))
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

var cartPod = Peer{Namespace: "shop", ServiceAccount: "cart", PodName: "cart-1", PodUID: "uid-c1", Node: "n1"}

const (
	cartID = "spiffe://cluster.local/ns/shop/sa/cart"
	payID  = "spiffe://cluster.local/ns/shop/sa/pay"
)

func TestWhoGetsWhichIdentity(t *testing.T) {
	for title, c := range map[string]struct {
		peer           Peer
		identity, want string
	}{
		"anyone its own, unsaid":                {cartPod, "", cartID},
		"anyone its own, said":                  {cartPod, cartID, cartID},
		"ztunnel its own":                       {tunnel, "", "spiffe://cluster.local/ns/ambit-system/sa/ztunnel"},
		"ztunnel that of a pod on its own node": {tunnel, cartID, cartID},
	} {
		t.Run(title, func(t *testing.T) {
			response, err := newMesh(t).askFor(t, c.peer, c.identity)
			if err != nil {
				t.Fatal(err)
			}
			if got := identityIn(t, response); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestWhoIsDenied(t *testing.T) {
	as := func(change func(*Peer)) Peer {
		peer := tunnel
		change(&peer)
		return peer
	}
	for title, c := range map[string]struct {
		reason   Refusal
		peer     Peer
		identity string
		prepare  func(*testing.T, *mesh)
	}{
		"a workload that asks for another identity": {reason: NotZtunnel, peer: cartPod, identity: payID},
		"ztunnel, for a pod of another node":        {reason: NotOnNode, peer: tunnel, identity: payID},
		"ztunnel, for an account without a pod":     {reason: NotOnNode, peer: tunnel, identity: "spiffe://cluster.local/ns/shop/sa/admin"},
		"ztunnel, for the same account elsewhere":   {reason: NotOnNode, peer: tunnel, identity: "spiffe://cluster.local/ns/other/sa/cart"},
		"ztunnel, for another trust domain":         {reason: ForeignTrustDomain, peer: tunnel, identity: "spiffe://evil/ns/shop/sa/cart"},
		"ztunnel, for no identity at all":           {reason: MalformedIdentity, peer: tunnel, identity: "cart"},
		"ztunnel, for a name with a NUL":            {reason: MalformedIdentity, peer: tunnel, identity: cartID + "\x00"},
		"ztunnel, for a name in capitals":           {reason: MalformedIdentity, peer: tunnel, identity: "SPIFFE://cluster.local/ns/shop/sa/cart"},
		"an account ztunnel of another namespace":   {reason: NotZtunnel, peer: as(func(p *Peer) { p.Namespace = "shop" }), identity: cartID},
		"another account of the system namespace":   {reason: NotZtunnel, peer: as(func(p *Peer) { p.ServiceAccount = "controller" }), identity: cartID},
		"a ztunnel pod that was replaced (UID)":     {reason: CallerReplaced, peer: as(func(p *Peer) { p.PodUID = "uid-old" }), identity: cartID},
		"a ztunnel pod that is not there":           {reason: CallerUnknown, peer: as(func(p *Peer) { p.PodName = "ztunnel-9" }), identity: cartID},
		"a ztunnel whose token names another node":  {reason: CallerElsewhere, peer: as(func(p *Peer) { p.Node = "n2" }), identity: payID},
		"a pod of another account with ztunnel's own": {reason: CallerReplaced, peer: as(func(p *Peer) { p.PodName, p.PodUID = "odd", "uid-odd" }), identity: cartID, prepare: func(t *testing.T, m *mesh) {
			m.add(t, podOf(system, "odd", "uid-odd", "controller", "n1"))
		}},
		"ztunnel, for a pod that has ended": {reason: NotOnNode, peer: tunnel, identity: "spiffe://cluster.local/ns/shop/sa/job", prepare: func(t *testing.T, m *mesh) {
			ended := podOf("shop", "job-1", "uid-j1", "job", "n1")
			ended.Status.Phase = corev1.PodSucceeded
			m.add(t, ended)
		}},
		"a ztunnel that has ended": {reason: CallerEnded, peer: as(func(p *Peer) { p.PodName, p.PodUID = "ztunnel-0", "uid-z0" }), identity: cartID, prepare: func(t *testing.T, m *mesh) {
			ended := podOf(system, "ztunnel-0", "uid-z0", "ztunnel", "n1")
			ended.Status.Phase = corev1.PodFailed
			m.add(t, ended)
		}},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			if c.prepare != nil {
				c.prepare(t, m)
			}
			_, err := m.askFor(t, c.peer, c.identity)
			if status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != "not entitled to this identity" {
				t.Errorf("%v, want an opaque PermissionDenied", err)
			}
			m.audited(t, c.reason, c.peer, c.identity)
		})
	}
}

func TestRequestForOthersIsDenied(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	for title, request := range map[string]x509.CertificateRequest{
		"another identity": {URIs: uris(t, payID)},
		"two identities":   {URIs: uris(t, cartID, payID)},
		"a DNS name":       {DNSNames: []string{"controller.ambit-system.svc"}},
	} {
		m := newMesh(t)
		_, err := m.ask(t, tunnel, cartID, &caapi.IstioCertificateRequest{Csr: csr(t, key, request)})
		m.audited(t, ForeignName, tunnel, cartID)
		if status.Code(err) != codes.PermissionDenied || strings.Contains(err.Error(), "pay") {
			t.Errorf("%s: %v", title, err)
		}
	}
	for reason, request := range map[Refusal]string{
		MalformedRequest: "hello",
		LargeRequest:     csr(t, key, requestFor(t, cartID)) + strings.Repeat("\n", maxRequestBytes),
		UnfitKey:         csr(t, ecKey(t, elliptic.P224()), requestFor(t, cartID)),
	} {
		m := newMesh(t)
		if _, err := m.ask(t, tunnel, cartID, &caapi.IstioCertificateRequest{Csr: request}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", reason, err)
		}
		m.audited(t, reason, tunnel, cartID)
	}
}

func TestWithoutATokenNothingIsSigned(t *testing.T) {
	m := newMesh(t)
	request := &caapi.IstioCertificateRequest{Csr: csr(t, ecKey(t, elliptic.P256()), requestFor(t, cartID))}
	if _, err := m.client.CreateCertificate(t.Context(), request); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
	elsewhere := tokenOf(tunnel)
	elsewhere.Audiences = []string{"https://kubernetes.default.svc"}
	m.api.tokens["elsewhere"] = elsewhere
	if _, err := m.client.CreateCertificate(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer elsewhere"), request); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a token for another audience: %v", err)
	}
}

func TestPodThatBecomesKnownALittleLater(t *testing.T) {
	m := newMesh(t)
	late := time.AfterFunc(informerLag/4, func() {
		_ = m.pods.indexer.Add(podOf("shop", "new-1", "uid-n1", "new", "n1"))
	})
	defer late.Stop()
	response, err := m.askFor(t, tunnel, "spiffe://cluster.local/ns/shop/sa/new")
	if err != nil {
		t.Fatal(err)
	}
	if got := identityIn(t, response); got != "spiffe://cluster.local/ns/shop/sa/new" {
		t.Error(got)
	}
}

func TestAskedLifetimeIsHonouredAndCapped(t *testing.T) {
	m := newMesh(t)
	for seconds, want := range map[int64]time.Duration{600: 10 * time.Minute, 0: 24 * time.Hour, 864000: 24 * time.Hour} {
		response, err := m.ask(t, cartPod, "", &caapi.IstioCertificateRequest{
			Csr: csr(t, ecKey(t, elliptic.P256()), requestFor(t, cartID)), ValidityDuration: seconds,
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := parsePEM(t, response.GetCertChain()[0]).NotAfter.Sub(start); got != want {
			t.Errorf("%d s asked, %v given", seconds, got)
		}
	}
}

// TestCallerIsKnownBeforeHisRequestIsRead: without a token, nothing of what a
// caller sends is taken in; gRPC would wait for all of it.
func TestCallerIsKnownBeforeHisRequestIsRead(t *testing.T) {
	m := newMesh(t)
	for title, token := range map[string]string{"no token": "", "a bad token": "Bearer elsewhere"} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", token)
		}
		call, err := m.connection.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, caapi.IstioCertificateService_CreateCertificate_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		// No message is sent; the answer has to come all the same.
		if err := call.RecvMsg(new(caapi.IstioCertificateResponse)); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v", title, err)
		}
	}
}

// TestRequestsThatDoNotComeAreBounded: who has a token and sends no request holds
// so many places and no more, and none for long.
func TestRequestsThatDoNotComeAreBounded(t *testing.T) {
	m := newMesh(t)
	m.api.tokens["good"] = tokenOf(cartPod)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer good")
	refused := make(chan error, 2*readingPerPod)
	for range 2 * readingPerPod {
		call, err := m.connection.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, caapi.IstioCertificateService_CreateCertificate_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		go func() { refused <- call.RecvMsg(new(caapi.IstioCertificateResponse)) }()
	}
	for range readingPerPod {
		if err := <-refused; status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%v", err)
		}
	}
	if _, err := m.askFor(t, tunnel, cartID); err != nil {
		t.Errorf("another caller meanwhile: %v", err)
	}
	for range readingPerPod {
		if err := <-refused; status.Code(err) != codes.ResourceExhausted {
			t.Errorf("one that waited in vain: %v", err)
		}
	}
}
