package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AuthorizationAction is what an AuthorizationPolicy does with what its rules match.
//
// +kubebuilder:validation:Enum=ALLOW;DENY;AUDIT;CUSTOM
type AuthorizationAction string

const (
	// AuthorizationAllow: what a rule matches may connect, if nothing denies it.
	AuthorizationAllow AuthorizationAction = "ALLOW"
	// AuthorizationDeny: what a rule matches may not connect, whatever allows it.
	AuthorizationDeny AuthorizationAction = "DENY"
	// AuthorizationAudit: what a rule matches is counted and logged as if it had
	// been denied, and let pass.
	AuthorizationAudit AuthorizationAction = "AUDIT"
	// AuthorizationCustom: about what a rule matches a provider decides. For
	// waypoints.
	AuthorizationCustom AuthorizationAction = "CUSTOM"
)

// AuthorizationPolicy says who may connect to pods.
//
// A connection is refused if a DENY policy matches it, or a CUSTOM policy whose
// provider does not agree. Otherwise it is let in if
// no ALLOW policy applies to the pod, or if one of those that do matches it. So
// an ALLOW policy without rules refuses everybody, and a DENY policy without
// rules nobody.
//
// Fields about requests (methods, paths, hosts, headers, JWT) are for waypoints.
// Where no waypoint enforces them, an ALLOW rule that has them matches nothing,
// a DENY rule that has them denies whatever the rest of it matches, and the
// status says so.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=authorizationpolicies,scope=Namespaced,categories=ambit
// +kubebuilder:printcolumn:name="ACTION",type=string,JSONPath=`.spec.action`
// +kubebuilder:printcolumn:name="ACCEPTED",type=string,JSONPath=`.status.conditions[?(@.type=="Accepted")].status`
// +kubebuilder:printcolumn:name="IN FORCE",type=string,JSONPath=`.status.inForce`
// +kubebuilder:printcolumn:name="VERSION",type=string,JSONPath=`.status.version`
// +kubebuilder:printcolumn:name="AGE",type=date,JSONPath=`.metadata.creationTimestamp`
type AuthorizationPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is what is wanted.
	// +optional
	// +kubebuilder:default={}
	Spec AuthorizationPolicySpec `json:"spec,omitempty"`
	// Status is what became of it.
	// +optional
	Status PolicyStatus `json:"status,omitempty"`

	// Unread are the fields of Spec that were stored, and that this version does not
	// know. It is no field of the object, but of what was read.
	Unread []string `json:"-"`
}

// AuthorizationPolicySpec says who may connect to which pods.
//
// +kubebuilder:validation:XValidation:rule="has(self.provider) == (has(self.action) && self.action == 'CUSTOM')",message="a provider is for CUSTOM, and CUSTOM needs one",fieldPath=".provider"
// +kubebuilder:validation:XValidation:rule="!(has(self.selector) && has(self.targetRefs))",message="only one of selector and targetRefs may be set",fieldPath=".targetRefs"
type AuthorizationPolicySpec struct {
	// Selector picks the pods. Without it and without targetRefs they are all of
	// the namespace, or all of the mesh in the system namespace.
	// +optional
	Selector *WorkloadSelector `json:"selector,omitempty"`
	// TargetRefs are Services and waypoints, in the policy's namespace, to whose
	// traffic it applies instead. It is enforced at the waypoint.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	TargetRefs []PolicyTargetReference `json:"targetRefs,omitempty"`
	// Action is ALLOW, DENY, or AUDIT: as DENY, but what would have been refused
	// is counted and logged, and let pass. With CUSTOM the provider is asked about
	// requests that a rule matches, if no other policy refuses them; where no
	// waypoint can ask, they are refused.
	// +optional
	// +kubebuilder:default=ALLOW
	Action AuthorizationAction `json:"action,omitempty"`
	// Provider is who is asked, if the action is CUSTOM.
	// +optional
	Provider *AuthorizationProvider `json:"provider,omitempty"`
	// Rules match a connection if one of them does. A rule without fields matches
	// every connection; no rules match none.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=128
	Rules []AuthorizationRule `json:"rules,omitempty"`
}

// AuthorizationProvider is a Service that speaks Envoy's protocol for external
// authorization by gRPC (envoy.service.auth.v3.Authorization). Waypoints reach it by
// tunnel: its pods have to be of the mesh.
type AuthorizationProvider struct {
	// Service is its name.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Service string `json:"service"`
	// Namespace of the Service; that of the policy if it is left out.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Namespace string `json:"namespace,omitempty"`
	// Port of the Service.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port"`
	// Timeout for an answer, such as 250ms: 5s at most, 1s if it is left out.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Pattern=`^([0-9]{1,4}ms|[0-5]s)$`
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s') && duration(self) <= duration('5s')",message="a timeout is more than 0 and at most 5s"
	Timeout string `json:"timeout,omitempty"`
	// FailOpen lets requests pass while the provider cannot be asked. Left out,
	// they are refused.
	// +optional
	FailOpen bool `json:"failOpen,omitempty"`
	// RequestBody has it told of the bodies of requests as well. Left out, it is told
	// of none.
	// +optional
	RequestBody *AuthorizationRequestBody `json:"requestBody,omitempty"`
	// ContextExtensions are told to it with each request, as context_extensions: what it
	// is to know of the policy, such as which rules of its own count.
	// +optional
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=32
	ContextExtensions map[string]ContextExtension `json:"contextExtensions,omitempty"`
	// IncludePeerCertificate has it told of the certificate that the client has shown as
	// well, as source.certificate: in PEM, percent-encoded. Its identity is told anyhow.
	// +optional
	IncludePeerCertificate bool `json:"includePeerCertificate,omitempty"`
}

// ContextExtension is a value that a provider is told.
//
// +kubebuilder:validation:MaxLength=1024
type ContextExtension string

// AuthorizationRequestBody says how much of a request's body a provider is told. It is
// asked once that has come, within 10 seconds, so it is not for streams.
type AuthorizationRequestBody struct {
	// MaxBytes of a body that the provider is told. A longer one is refused with 413.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1048576
	MaxBytes int32 `json:"maxBytes"`
	// AllowPartial has the provider told of the first maxBytes of a longer one,
	// instead.
	// +optional
	AllowPartial bool `json:"allowPartial,omitempty"`
}

// PolicyTargetReference is a Service or a waypoint.
//
// +kubebuilder:validation:XValidation:rule="(self.kind == 'Service' && (!has(self.group) || self.group.size() == 0 || self.group == 'core')) || (self.kind == 'Gateway' && has(self.group) && self.group == 'gateway.networking.k8s.io')",message="a target is kind Service of the core group, or kind Gateway of the group gateway.networking.k8s.io",fieldPath=".kind"
type PolicyTargetReference struct {
	// Group is empty for a Service, gateway.networking.k8s.io for a Gateway.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Group string `json:"group,omitempty"`
	// Kind is Service or Gateway.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Kind string `json:"kind"`
	// Name of the object, in the policy's namespace.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// AuthorizationRule matches a connection if one of its sources, one of its
// operations and all of its conditions do.
type AuthorizationRule struct {
	// From is who connects. Without it that is anybody.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	From []RuleFrom `json:"from,omitempty"`
	// To is what they want. Without it that is anything.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	To []RuleTo `json:"to,omitempty"`
	// When are further conditions.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	When []Condition `json:"when,omitempty"`
	// Condition is an expression in CEL that has to be true besides, such as
	// request.auth.claims.role == 'admin' && request.method != 'DELETE'. Of the
	// request there are method, path (decoded), query, host, headers (by their names in lower
	// case, several of a name with a comma between them), auth.principal,
	// auth.audiences, auth.presenter and auth.claims; of the source ip, principal,
	// namespace and serviceAccount; of the destination ip and port. One that cannot
	// be evaluated, or takes too long, does not match in an ALLOW, and does in a DENY.
	// For waypoints.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	Condition string `json:"condition,omitempty"`
}

// RuleFrom holds a source.
type RuleFrom struct {
	// Source is who connects.
	Source Source `json:"source"`
}

// RuleTo holds an operation.
type RuleTo struct {
	// Operation is what they want.
	Operation Operation `json:"operation"`
}

// Source matches who connects, if every one of its fields does; a field does if
// one of its values does. The fields that begin with `not` match whom none of
// their values match.
//
// +kubebuilder:validation:MinProperties=1
type Source struct {
	// Principals are identities, without spiffe://, such as
	// cluster.local/ns/shop/sa/web. A * at the beginning or at the end stands for
	// anything; * alone for any identity, but not for a client without one.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Principals []Principal `json:"principals,omitempty"`
	// NotPrincipals are identities that do not match.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	NotPrincipals []Principal `json:"notPrincipals,omitempty"`
	// Namespaces of the client's identity, with * as in principals.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Namespaces []StringMatch `json:"namespaces,omitempty"`
	// NotNamespaces are namespaces that do not match.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	NotNamespaces []StringMatch `json:"notNamespaces,omitempty"`
	// ServiceAccounts of the client's identity: NAMESPACE/NAME, or NAME for one
	// of the policy's namespace. There are no wildcards.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	ServiceAccounts []ServiceAccountName `json:"serviceAccounts,omitempty"`
	// NotServiceAccounts are service accounts that do not match.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	NotServiceAccounts []ServiceAccountName `json:"notServiceAccounts,omitempty"`
	// IPBlocks are addresses of the client, such as 10.1.0.0/16 or 10.1.2.3.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	IPBlocks []IPBlock `json:"ipBlocks,omitempty"`
	// NotIPBlocks are addresses that do not match.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	NotIPBlocks []IPBlock `json:"notIpBlocks,omitempty"`
	// RemoteIPBlocks are addresses of the client. No proxy before the mesh is
	// trusted to report another one than its own: they are what ipBlocks are, of
	// requests. For waypoints.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	RemoteIPBlocks []IPBlock `json:"remoteIpBlocks,omitempty"`
	// NotRemoteIPBlocks are such addresses that do not match. For waypoints.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	NotRemoteIPBlocks []IPBlock `json:"notRemoteIpBlocks,omitempty"`
	// RequestPrincipals are ISSUER/SUBJECT of the request's JWT, with * as in
	// principals. For waypoints.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	RequestPrincipals []StringMatch `json:"requestPrincipals,omitempty"`
	// NotRequestPrincipals are such that do not match. For waypoints.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	NotRequestPrincipals []StringMatch `json:"notRequestPrincipals,omitempty"`
}

// Operation matches what is wanted, if every one of its fields does; a field
// does if one of its values does. The fields that begin with `not` match what
// none of their values match.
//
// +kubebuilder:validation:MinProperties=1
type Operation struct {
	// Ports that the application listens on, not those of a Service, as strings.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Ports []PortNumber `json:"ports,omitempty"`
	// NotPorts are ports that do not match.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	NotPorts []PortNumber `json:"notPorts,omitempty"`
	// Hosts of the request, with * as in principals. For waypoints.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Hosts []StringMatch `json:"hosts,omitempty"`
	// NotHosts are hosts that do not match. For waypoints.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	NotHosts []StringMatch `json:"notHosts,omitempty"`
	// Methods of the request, such as GET. For waypoints.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Methods []StringMatch `json:"methods,omitempty"`
	// NotMethods are methods that do not match. For waypoints.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	NotMethods []StringMatch `json:"notMethods,omitempty"`
	// Paths of the request, with * as in principals, or as templates with {*} for
	// one segment and {**} for any number. Encodings stand for what they encode:
	// /a%3Ab is /a:b. For waypoints.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Paths []PathMatch `json:"paths,omitempty"`
	// NotPaths are paths that do not match. For waypoints.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	NotPaths []PathMatch `json:"notPaths,omitempty"`
}

// Condition matches an attribute of the connection or the request, if one of
// its values does and none of its notValues.
//
// +kubebuilder:validation:XValidation:rule="has(self.values) || has(self.notValues)",message="values or notValues must be set",fieldPath=".values"
type Condition struct {
	// Key is the attribute: source.ip, source.namespace, source.principal,
	// source.serviceAccount, destination.ip, destination.port; and for waypoints
	// request.headers[NAME], request.auth.principal, request.auth.audiences,
	// request.auth.presenter, request.auth.claims[NAME], remote.ip, connection.sni.
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:Pattern=`^(source\.(ip|namespace|principal|serviceAccount)|destination\.(ip|port)|remote\.ip|connection\.sni|request\.auth\.(principal|audiences|presenter)|request\.headers\[[^\]\[]+\]|request\.auth\.claims(\[[^\]\[]+\])+)$`
	Key string `json:"key"`
	// Values of the attribute, written as in the field of that name elsewhere.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Values []StringMatch `json:"values,omitempty"`
	// NotValues are values that do not match.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	NotValues []StringMatch `json:"notValues,omitempty"`
}

// StringMatch is a value, with a * at the beginning or at the end for anything,
// or * alone for anything that is not empty.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=512
// +kubebuilder:validation:Pattern=`^(\*|\*[^*]+|[^*]+\*?)$`
type StringMatch string

// Principal is an identity without spiffe://, with * as in StringMatch.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=512
// +kubebuilder:validation:Pattern=`^(\*|\*[^*]+|[^*]+\*?)$`
// +kubebuilder:validation:XValidation:rule="!self.startsWith('spiffe://')",message="write the identity without spiffe://, such as cluster.local/ns/shop/sa/web"
type Principal string

// PathMatch is a path, with * as in StringMatch, or a template.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=512
// +kubebuilder:validation:Pattern=`^(\*|\*[^*{}]+|[^*{}]+\*?|(/(\{\*{1,2}\}|[^*{}/]*))+)$`
type PathMatch string

// ServiceAccountName is NAMESPACE/NAME or NAME.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=317
// +kubebuilder:validation:Pattern=`^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/)?[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`
type ServiceAccountName string

// IPBlock is an address or a CIDR.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=43
// +kubebuilder:validation:XValidation:rule="isIP(self) || isCIDR(self)",message="write an address or a CIDR, such as 10.1.0.0/16 or 2001:db8::1"
type IPBlock string

// PortNumber is a port, as a string.
//
// +kubebuilder:validation:MaxLength=5
// +kubebuilder:validation:Pattern=`^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$`
type PortNumber string

// AuthorizationPolicyList is a list of authorization policies.
//
// +kubebuilder:object:root=true
type AuthorizationPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AuthorizationPolicy `json:"items"`
}
