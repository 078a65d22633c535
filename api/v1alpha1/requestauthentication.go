package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RequestAuthentication says which tokens (JWT) requests may bear, and who signs
// them. It is enforced at waypoints.
//
// A request that bears a token that is no good is answered with 401: one of an
// issuer that no rule has, that is expired, meant for others, or not signed by
// the issuer's keys; also while these keys cannot be had. Tokens in more than one
// place are answered with 400. A request without a token is let pass, without a
// principal: an AuthorizationPolicy is what demands one (requestPrincipals, or
// request.auth.claims in when).
//
// Where no waypoint stands before the pods nobody looks at tokens, and the
// status says so.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=requestauthentications,scope=Namespaced,categories=ambit
// +kubebuilder:printcolumn:name="ISSUER",type=string,JSONPath=`.spec.jwtRules[*].issuer`
// +kubebuilder:printcolumn:name="ACCEPTED",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="IN FORCE",type=string,JSONPath=`.status.inForce`
// +kubebuilder:printcolumn:name="VERSION",type=string,JSONPath=`.status.version`
// +kubebuilder:printcolumn:name="AGE",type=date,JSONPath=`.metadata.creationTimestamp`
type RequestAuthentication struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what is wanted.
	Spec RequestAuthenticationSpec `json:"spec"`
	// Status is what became of it.
	// +optional
	Status PolicyStatus `json:"status,omitempty"`

	// Unread are the fields of Spec that were stored, and that this version does not
	// know. It is no field of the object, but of what was read.
	Unread []string `json:"-"`
}

// RequestAuthenticationSpec says which requests may bear which tokens.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.selector) && has(self.targetRefs))",message="only one of selector and targetRefs may be set",fieldPath=".targetRefs"
type RequestAuthenticationSpec struct {
	// Selector picks pods: it applies to requests for the Services that one of
	// them serves, and for the pods themselves. Without it and without targetRefs
	// they are all of the namespace, or all of the mesh in the system namespace.
	// +optional
	Selector *WorkloadSelector `json:"selector,omitempty"`
	// TargetRefs are Services and waypoints, in the same namespace, to whose
	// requests it applies instead.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	TargetRefs []PolicyTargetReference `json:"targetRefs,omitempty"`
	// JWTRules are the issuers of tokens.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	JWTRules []JWTRule `json:"jwtRules"`
}

// JWTRule is an issuer of tokens, and where they are found.
//
// +kubebuilder:validation:XValidation:rule="has(self.jwks) != has(self.jwksUri)",message="the keys are either in jwks or at jwksUri",fieldPath=".jwks"
// +kubebuilder:validation:XValidation:rule="!has(self.certificateAuthority) || (has(self.jwksUri) && self.jwksUri.startsWith('https:'))",message="a certificate authority is for a jwksUri of https",fieldPath=".certificateAuthority"
// +kubebuilder:validation:XValidation:rule="!has(self.algorithms) || !has(self.jwksUri) || !self.algorithms.exists(a, a.startsWith('HS'))",message="HS256, HS384 and HS512 need a secret, in jwks: one that is found at a URI is none",fieldPath=".algorithms"
type JWTRule struct {
	// Issuer as tokens have it in their claim iss, to the letter.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	Issuer string `json:"issuer"`
	// Audiences that tokens may be meant for: one of those in their claim aud has
	// to be one of these. Left out, any, or none, will do.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Audiences []JWTAudience `json:"audiences,omitempty"`
	// JWKS is the issuer's keys, as a JSON Web Key Set.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=65536
	JWKS string `json:"jwks,omitempty"`
	// JWKSURI is where the keys are. Waypoints fetch them, through no redirect, and
	// again every 20 minutes, or when a token names a key that they have not got:
	// https, or http where the host is that of a Service whose pods are all of the
	// mesh, such as http://issuer.auth.svc.cluster.local/keys.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:Pattern=`^(https://[^@#\s/]+(/[^#\s]*)?|http://[a-z0-9.-]+\.svc(\.[a-z0-9.-]+)?(:[0-9]+)?(/[^#\s]*)?)$`
	// +kubebuilder:validation:XValidation:rule="isURL(self)",message="is no URL"
	JWKSURI string `json:"jwksUri,omitempty"`
	// CertificateAuthority is the certificates (PEM) of the authorities that alone may
	// vouch for the host of jwksUri, for an issuer whose certificate is of a private
	// authority. Left out, they are the public ones.
	// +optional
	// +kubebuilder:validation:MaxLength=65536
	// +kubebuilder:validation:Pattern=`^\s*-----BEGIN CERTIFICATE-----`
	CertificateAuthority string `json:"certificateAuthority,omitempty"`
	// Algorithms that tokens may be signed by, each only with keys of its kind.
	// Left out, they are those of asymmetric keys: all of these but HS256, HS384
	// and HS512, which take a secret that waypoints could sign with themselves.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Algorithms []JWTAlgorithm `json:"algorithms,omitempty"`
	// FromHeaders, fromParams and fromCookies are where tokens are. With none of
	// them that is the header Authorization, after Bearer, and the query parameter
	// access_token.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	FromHeaders []JWTHeader `json:"fromHeaders,omitempty"`
	// FromParams are query parameters.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	FromParams []JWTParam `json:"fromParams,omitempty"`
	// FromCookies are cookies.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	FromCookies []HeaderName `json:"fromCookies,omitempty"`
	// ForwardOriginalToken has the token go on to the application. Left out, it is
	// taken from the request.
	// +optional
	ForwardOriginalToken bool `json:"forwardOriginalToken,omitempty"`
	// OutputClaimToHeaders tells the application of claims. What clients send in
	// these headers is taken from every request, with or without a token.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	OutputClaimToHeaders []ClaimToHeader `json:"outputClaimToHeaders,omitempty"`
}

// JWTAudience is a value of the claim aud.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=512
type JWTAudience string

// JWTAlgorithm is an algorithm of signatures (RFC 7518 section 3.1).
//
// +kubebuilder:validation:Enum=RS256;RS384;RS512;PS256;PS384;PS512;ES256;ES384;ES512;EdDSA;HS256;HS384;HS512
type JWTAlgorithm string

// JWTHeader is a header that tokens are in.
type JWTHeader struct {
	// Name of the header.
	Name HeaderName `json:"name"`
	// Prefix that stands before the token, such as "Bearer ". What does not begin
	// with it is no token.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Prefix string `json:"prefix,omitempty"`
}

// JWTParam is the name of a query parameter.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=128
// +kubebuilder:validation:Pattern=`^[A-Za-z0-9_.~-]+$`
type JWTParam string

// HeaderName is the name of a header (RFC 9110 section 5.1), or of a cookie.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=128
// +kubebuilder:validation:Pattern="^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
type HeaderName string

// ClaimToHeader is a claim that the application is told of.
type ClaimToHeader struct {
	// Header that has the claim, if the token has it: as text, where it is a
	// string of printable ASCII, a number or a boolean; else there is none.
	// +kubebuilder:validation:XValidation:rule="!(self.lowerAscii() in ['connection', 'content-length', 'expect', 'host', 'http2-settings', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'transfer-encoding', 'upgrade'])",message="that header is about the connection, and not for claims"
	Header HeaderName `json:"header"`
	// Claim by its name, or by names that lead to it, with dots between them.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern=`^[^.]+(\.[^.]+)*$`
	Claim string `json:"claim"`
}

// RequestAuthenticationList is a list of request authentications.
//
// +kubebuilder:object:root=true
type RequestAuthenticationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []RequestAuthentication `json:"items"`
}
