package v1alpha1_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

// admission is what an API server does with an object of one kind before it
// stores it.
type admission struct {
	structural *structuralschema.Structural
	schema     validation.SchemaValidator
	rules      *cel.Validator
}

// definition reads the CustomResourceDefinition of a kind as it is installed,
// with the defaults that an API server gives it.
func definition(t *testing.T, plural string) *apiextensions.CustomResourceDefinition {
	t.Helper()
	text, err := os.ReadFile("../../deploy/manifests/crds/ambit.mesh_" + plural + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	var versioned apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &versioned); err != nil {
		t.Fatal(err)
	}
	apiextensionsv1.SetDefaults_CustomResourceDefinition(&versioned)
	apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&versioned.Spec)
	var internal apiextensions.CustomResourceDefinition
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&versioned, &internal, nil); err != nil {
		t.Fatal(err)
	}
	return &internal
}

func admissionOf(t *testing.T, plural string) *admission {
	t.Helper()
	crd := definition(t, plural)
	schema := crd.Spec.Validation
	if schema == nil {
		schema = crd.Spec.Versions[0].Schema
	}
	a := &admission{}
	var err error
	if a.structural, err = structuralschema.NewStructural(schema.OpenAPIV3Schema); err != nil {
		t.Fatal(err)
	}
	if a.schema, _, err = validation.NewSchemaValidator(schema.OpenAPIV3Schema); err != nil {
		t.Fatal(err)
	}
	a.rules = cel.NewValidator(a.structural, true, celconfig.PerCallLimit)
	return a
}

// admit returns what is wrong with an object, the fields that nobody knows
// included: kubectl has those refused too.
func (a *admission) admit(t *testing.T, text string) (problems field.ErrorList) {
	t.Helper()
	object := read(t, text)
	for _, unknown := range pruning.PruneWithOptions(object, a.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}) {
		problems = append(problems, field.Invalid(field.NewPath(unknown), "", "unknown field"))
	}
	defaulting.Default(object, a.structural)
	problems = append(problems, validation.ValidateCustomResource(nil, object, a.schema)...)
	if len(problems) > 0 {
		return problems // as the API server: rules see only what fits the schema
	}
	problems, _ = a.rules.Validate(t.Context(), nil, a.structural, object, nil, celconfig.RuntimeCELCostBudget)
	return problems
}

// read an object as an API server does, integers as such.
func read(t *testing.T, text string) (object map[string]any) {
	t.Helper()
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err == nil {
		err = json.Unmarshal(raw, &object)
	}
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return object
}

// policyPlurals are the kinds that people write.
var policyPlurals = []string{"authorizationpolicies", "egresspolicies", "peerauthentications", "requestauthentications"}

// An API server takes the definitions: their rules compile, and cost no more
// than it allows.
func TestDefinitionsAreAccepted(t *testing.T) {
	for _, plural := range append([]string{"workloads"}, policyPlurals...) {
		crd := definition(t, plural)
		crd.Status.StoredVersions = []string{"v1alpha1"}
		for _, problem := range crdvalidation.ValidateCustomResourceDefinition(t.Context(), crd) {
			t.Errorf("%s: %v", plural, problem)
		}
	}
}

// The group has no default but those that are meant: one that is not changes
// what an object says.
func TestDefaults(t *testing.T) {
	for plural, test := range map[string]struct{ in, want string }{
		"authorizationpolicies": {"{}", "spec: {action: ALLOW}"},
		"peerauthentications":   {"spec: {}", "spec: {}"},
		"egresspolicies": {"spec: {action: Deny, exceptions: [{ports: [{port: 443}]}]}",
			"spec: {action: Deny, exceptions: [{ports: [{port: 443, protocol: TCP}]}]}"},
	} {
		object, want := read(t, test.in), read(t, test.want)
		defaulting.Default(object, admissionOf(t, plural).structural)
		if fmt.Sprint(object) != fmt.Sprint(want) {
			t.Errorf("%s: %v, want %v", plural, object, want)
		}
	}
}

const metadata = "apiVersion: ambit.mesh/v1alpha1\nmetadata: {name: p, namespace: shop}\n"

func TestGoodObjectsAreAdmitted(t *testing.T) {
	for plural, specs := range map[string][]string{
		"peerauthentications": {
			"{}",
			"{mtls: {mode: STRICT}}",
			"{mtls: {mode: UNSET}}",
			"{selector: {matchLabels: {app: web, app.kubernetes.io/part-of: ''}}, mtls: {mode: PERMISSIVE}}",
			"{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {1: {mode: DISABLE}, 80: {mode: PERMISSIVE}, '65535': {mode: STRICT}}}",
		},
		"authorizationpolicies": {
			"{}",
			"{rules: [{}]}",
			"{action: DENY}",
			"{action: AUDIT, rules: [{}]}",
			"{action: CUSTOM, provider: {service: judge, port: 9000}, rules: [{}]}",
			"{action: CUSTOM, provider: {service: judge, namespace: auth, port: 9000, timeout: 250ms, failOpen: true}, rules: [{}]}",
			"{action: CUSTOM, provider: {service: judge, port: 9000, contextExtensions: {rules: cart, none: ''}, includePeerCertificate: true}}",
			`{rules: [{condition: "request.auth.claims.role == 'admin'"}]}`,
			`{selector: {matchLabels: {app: web}}, action: ALLOW, rules: [{from: [{source: {
			  principals: [cluster.local/ns/shop/sa/web, cluster.local/*, '*/sa/web', '*'],
			  notPrincipals: ['example.org/*'], namespaces: [shop, 'shop-*', '*-test'], notNamespaces: [default],
			  serviceAccounts: [web, shop/web, shop/web.front], notServiceAccounts: [admin],
			  ipBlocks: [10.0.0.0/8, 10.1.2.3, '2001:db8::/32', '2001:db8::1'], notIpBlocks: [10.9.0.0/16]}}],
			  to: [{operation: {ports: ['1', '80', '9999', '65535'], notPorts: ['8081']}}]}]}`,
			`{targetRefs: [{kind: Service, name: web}, {group: core, kind: Service, name: web}, {group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}],
			  rules: [{from: [{source: {requestPrincipals: ['*'], notRequestPrincipals: [x/y], remoteIpBlocks: [192.0.2.0/24], notRemoteIpBlocks: [192.0.2.1]}}],
			  to: [{operation: {hosts: ['*.example.com'], notHosts: [a.example.com], methods: [GET], notMethods: ['*'],
			  paths: [/, /api/*, '*/x', '*', '/a/{*}/b', '/a/{**}'], notPaths: [/admin]}}],
			  when: [{key: 'request.auth.claims[iss]', values: ['https://issuer.example.com']}, {key: 'request.auth.claims[a][b]', values: [c]},
			  {key: 'request.headers[X-Token]', notValues: ['admin*']}, {key: request.auth.principal, values: ['*']}]}]}`,
			`{rules: [{when: [{key: source.ip, values: [10.0.0.0/8]}, {key: source.namespace, notValues: [x]}, {key: source.principal, values: ['*']},
			  {key: source.serviceAccount, values: [shop/web]}, {key: destination.ip, values: [10.0.0.1]}, {key: destination.port, values: ['80']}]}]}`,
		},
		"egresspolicies": {
			"{action: Allow}",
			"{action: Deny}",
			`{selector: {matchLabels: {app: web}}, action: Deny, exceptions: [{cidr: 203.0.113.0/24}, {cidr: '2001:db8::/32', ports: [{port: 443}]},
			  {dnsName: api.example.com, ports: [{port: 443, protocol: TCP}, {port: 443, endPort: 444, protocol: UDP}]},
			  {dnsName: '*.example.com'}, {dnsName: localhost}, {dnsName: _srv.example.com}, {ports: [{port: 53, protocol: Any}]}]}`,
		},
		"requestauthentications": {
			"{jwtRules: [{issuer: me, jwks: '{}'}]}",
			"{jwtRules: [{issuer: me, jwksUri: 'https://issuer.example.com/.well-known/jwks.json?v=1'}]}",
			"{jwtRules: [{issuer: me, jwksUri: 'https://issuer.example.com'}, {issuer: me, jwksUri: 'https://[2001:db8::1]:8443/keys'}]}",
			"{jwtRules: [{issuer: me, jwksUri: 'http://issuer.auth.svc.cluster.local:8080/keys'}]}",
			"{jwtRules: [{issuer: me, jwksUri: 'https://issuer.auth.svc.cluster.local:8443/keys', certificateAuthority: \"\\n-----BEGIN CERTIFICATE-----\\n\"}]}",
			`{targetRefs: [{kind: Service, name: web}], jwtRules: [{issuer: 'https://issuer.example.com/', audiences: [a, 'https://b'], jwks: '{"keys":[]}',
			  algorithms: [RS256, EdDSA, HS256], fromHeaders: [{name: Authorization, prefix: 'Bearer '}, {name: X-Token}], fromParams: [access_token, a.b],
			  fromCookies: [__Host-session], forwardOriginalToken: true,
			  outputClaimToHeaders: [{header: X-Sub, claim: sub}, {header: x-deep, claim: 'realm.access_roles'}, {header: x-role, claim: 'https://example'}]}]}`,
		},
	} {
		a := admissionOf(t, plural)
		for _, spec := range specs {
			for _, problem := range a.admit(t, metadata+"spec: "+spec) {
				t.Errorf("%s %s: %v", plural, spec, problem)
			}
		}
	}
}

// A bad object is refused, and the field that is bad is named.
func TestBadObjectsAreRefused(t *testing.T) {
	const (
		source    = "{rules: [{from: [{source: {%s}}]}]}"
		operation = "{rules: [{to: [{operation: {%s}}]}]}"
		when      = "{rules: [{when: [{%s}]}]}"
		exception = "{action: Deny, exceptions: [{cidr: 10.0.0.0/8}, {%s}]}"
		inSource  = "spec.rules[0].from[0].source."
		inOp      = "spec.rules[0].to[0].operation."
		inWhen    = "spec.rules[0].when[0]"
		inExcept  = "spec.exceptions[1]"
		rule      = "{jwtRules: [{issuer: me, jwks: '{}', %s}]}"
		uri       = "{jwtRules: [{issuer: me, jwksUri: '%s'}]}"
		inRule    = "spec.jwtRules[0]"
	)
	type bad struct{ spec, field, says string }
	in := func(format, spec string) string { return fmt.Sprintf(format, spec) }
	for plural, tests := range map[string][]bad{
		"peerauthentications": {
			{"{mtls: {mode: MUTUAL}}", "spec.mtls.mode", `supported values: "UNSET", "STRICT", "PERMISSIVE", "DISABLE"`},
			{"{mtls: STRICT}", "spec.mtls", "must be of type object"},
			{"{mtls: {mod: STRICT}}", "spec.mtls.mod", "unknown field"},
			{"{selector: {}}", "spec.selector.matchLabels", "Required"},
			{"{selector: {matchLabels: {}}}", "spec.selector.matchLabels", "at least 1"},
			{"{selector: {matchLabels: {app: 'w*'}}}", "spec.selector.matchLabels.app", "should match"},
			{"{selector: {matchLabels: {'a*': x}}}", "spec.selector.matchLabels", "no wildcard"},
			{"{portLevelMtls: {80: {mode: STRICT}}}", "spec.portLevelMtls", "needs a selector"},
			{"{selector: {matchLabels: {app: web}}, portLevelMtls: {0: {mode: STRICT}}}", "spec.portLevelMtls", "1 to 65535"},
			{"{selector: {matchLabels: {app: web}}, portLevelMtls: {65536: {mode: STRICT}}}", "spec.portLevelMtls", "1 to 65535"},
			{"{selector: {matchLabels: {app: web}}, portLevelMtls: {'080': {mode: STRICT}}}", "spec.portLevelMtls", "1 to 65535"},
			{"{selector: {matchLabels: {app: web}}, portLevelMtls: {http: {mode: STRICT}}}", "spec.portLevelMtls", "1 to 65535"},
			{"{selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: strict}}}", "spec.portLevelMtls.80.mode", "Unsupported value"},
			{"{selector: {matchLabels: {app: web}}, portLevelMtls: {}}", "spec.portLevelMtls", "at least 1"},
		},
		"authorizationpolicies": {
			{"{action: CUSTOM}", "spec.provider", "CUSTOM needs one"},
			{"{action: DENY, provider: {service: judge, port: 80}}", "spec.provider", "a provider is for CUSTOM"},
			{"{provider: {service: judge, port: 80}}", "spec.provider", "a provider is for CUSTOM"},
			{"{action: CUSTOM, provider: {port: 80}}", "spec.provider.service", "Required"},
			{"{action: CUSTOM, provider: {service: judge}}", "spec.provider.port", "Required"},
			{"{action: CUSTOM, provider: {service: judge, port: 0}}", "spec.provider.port", "greater than or equal to 1"},
			{"{action: CUSTOM, provider: {service: judge, port: 80, contextExtensions: {}}}", "spec.provider.contextExtensions", "at least 1"},
			{"{action: CUSTOM, provider: {service: judge, port: 80, contextExtensions: {rules: " + strings.Repeat("a", 1025) + "}}}", "spec.provider.contextExtensions.rules", "Too long"},
			{"{action: CUSTOM, provider: {service: judge, port: 80, timeout: 1m}}", "spec.provider.timeout", "should match"},
			{"{action: CUSTOM, provider: {service: judge, port: 80, timeout: 9999ms}}", "spec.provider.timeout", "at most 5s"},
			{"{action: CUSTOM, provider: {service: judge, port: 80, timeout: 0s}}", "spec.provider.timeout", "more than 0"},
			{"{action: Allow}", "spec.action", "Unsupported value"},
			{"{selector: {matchLabels: {app: web}}, targetRefs: [{kind: Service, name: web}]}", "spec.targetRefs", "only one of"},
			{"{targetRefs: []}", "spec.targetRefs", "at least 1"},
			{"{targetRefs: [{kind: Pod, name: web}]}", "spec.targetRefs[0].kind", "kind Service"},
			{"{targetRefs: [{kind: Gateway, name: web}]}", "spec.targetRefs[0].kind", "gateway.networking.k8s.io"},
			{"{targetRefs: [{group: apps, kind: Service, name: web}]}", "spec.targetRefs[0].kind", "core group"},
			{"{targetRefs: [{kind: Service}]}", "spec.targetRefs[0].name", "Required"},
			{"{rules: [{from: []}]}", "spec.rules[0].from", "at least 1"},
			{"{rules: [{from: [{}]}]}", "spec.rules[0].from[0].source", "Required"},
			{"{rules: [{from: [{source: {}}]}]}", "spec.rules[0].from[0].source", "at least 1"},
			{"{rules: [{to: [{operation: {}}]}]}", "spec.rules[0].to[0].operation", "at least 1"},
			{"{rules: [{to: []}]}", "spec.rules[0].to", "at least 1"},
			{"{rules: [{when: []}]}", "spec.rules[0].when", "at least 1"},
			{"{rules: [{condition: ''}]}", "spec.rules[0].condition", "at least 1"},
			{"{rules: [{condition: [x]}]}", "spec.rules[0].condition", "must be of type string"},
			{"{rules: [{form: []}]}", "spec.rules[0].form", "unknown field"},
			{in(source, "principals: []"), inSource + "principals", "at least 1"},
			{in(source, "principals: [a, 'spiffe://cluster.local/ns/a/sa/b']"), inSource + "principals[1]", "without spiffe://"},
			{in(source, "notPrincipals: ['spiffe://cluster.local/*']"), inSource + "notPrincipals[0]", "without spiffe://"},
			{in(source, "principals: ['cluster.local/*/sa/web']"), inSource + "principals[0]", "should match"},
			{in(source, "principals: ['*web*']"), inSource + "principals[0]", "should match"},
			{in(source, "principals: ['**']"), inSource + "principals[0]", "should match"},
			{in(source, "principals: ['']"), inSource + "principals[0]", "at least 1"},
			{in(source, "namespaces: ['a*b']"), inSource + "namespaces[0]", "should match"},
			{in(source, "namespaces: [1]"), inSource + "namespaces[0]", "must be of type string"},
			{in(source, "serviceAccounts: ['shop/*']"), inSource + "serviceAccounts[0]", "should match"},
			{in(source, "serviceAccounts: [cluster.local/ns/shop/sa/web]"), inSource + "serviceAccounts[0]", "should match"},
			{in(source, "ipBlocks: [10.0.0.0/33]"), inSource + "ipBlocks[0]", "CIDR"},
			{in(source, "ipBlocks: [10.0.0.0/8, 10.0.0]"), inSource + "ipBlocks[1]", "CIDR"},
			{in(source, "notIpBlocks: [web]"), inSource + "notIpBlocks[0]", "CIDR"},
			{in(source, "remoteIpBlocks: ['2001:db8::/129']"), inSource + "remoteIpBlocks[0]", "CIDR"},
			{in(operation, "ports: [80]"), inOp + "ports[0]", "must be of type string"},
			{in(operation, "ports: ['0']"), inOp + "ports[0]", "should match"},
			{in(operation, "ports: ['65536']"), inOp + "ports[0]", "should match"},
			{in(operation, "notPorts: ['99999']"), inOp + "notPorts[0]", "should match"},
			{in(operation, "ports: [http]"), inOp + "ports[0]", "should match"},
			{in(operation, "methods: ['G*T']"), inOp + "methods[0]", "should match"},
			{in(operation, "paths: ['/a*b']"), inOp + "paths[0]", "should match"},
			{in(operation, "paths: ['/a/{***}']"), inOp + "paths[0]", "should match"},
			{in(when, "key: source.ip"), inWhen + ".values", "must be set"},
			{in(when, "key: source.port, values: ['1']"), inWhen + ".key", "should match"},
			{in(when, "key: 'request.headers[]', values: [x]"), inWhen + ".key", "should match"},
			{in(when, "values: [x]"), inWhen + ".key", "Required"},
			{in(when, "key: source.ip, values: []"), inWhen + ".values", "at least 1"},
			{"{rules: [" + strings.Repeat("{},", 128) + "{}]}", "spec.rules", "at most 128"},
		},
		"egresspolicies": {
			{"{}", "spec.action", "Required"},
			{"{action: DENY}", "spec.action", `supported values: "Allow", "Deny"`},
			{"{action: Allow, exceptions: [{cidr: 10.0.0.0/8}]}", "spec.exceptions", "for Deny"},
			{"{action: Deny, exceptions: []}", "spec.exceptions", "at least 1"},
			{in(exception, ""), inExcept, "at least 1"},
			{in(exception, "cidr: 10.0.0.1"), inExcept + ".cidr", "write a CIDR"},
			{in(exception, "cidr: 10.0.0.0/33"), inExcept + ".cidr", "write a CIDR"},
			{in(exception, "cidr: '::ffff:10.0.0.0/104'"), inExcept + ".cidr", "write a CIDR"},
			{in(exception, "cidr: 10.0.0.0/8, dnsName: example.com"), inExcept + ".dnsName", "either"},
			{in(exception, "dnsName: '*'"), inExcept + ".dnsName", "should match"},
			{in(exception, "dnsName: '*.'"), inExcept + ".dnsName", "should match"},
			{in(exception, "dnsName: 'a.*.example.com'"), inExcept + ".dnsName", "should match"},
			{in(exception, "dnsName: 'Example.com'"), inExcept + ".dnsName", "should match"},
			{in(exception, "dnsName: 'example.com.'"), inExcept + ".dnsName", "should match"},
			{in(exception, "dnsName: 'https://example.com'"), inExcept + ".dnsName", "should match"},
			{in(exception, "dnsName: "+strings.Repeat("a", 64)+".com"), inExcept + ".dnsName", "should match"},
			{in(exception, "ports: []"), inExcept + ".ports", "at least 1"},
			{in(exception, "ports: [{port: 0}]"), inExcept + ".ports[0].port", "greater than or equal to 1"},
			{in(exception, "ports: [{port: 65536}]"), inExcept + ".ports[0].port", "less than or equal to 65535"},
			{in(exception, "ports: [{port: 443, endPort: 442}]"), inExcept + ".ports[0].endPort", "ends at or after"},
			{in(exception, "ports: [{port: '443'}]"), inExcept + ".ports[0].port", "must be of type integer"},
			{in(exception, "ports: [{protocol: TCP}]"), inExcept + ".ports[0].port", "Required"},
			{in(exception, "ports: [{port: 443, protocol: SCTP}]"), inExcept + ".ports[0].protocol", "Unsupported value"},
		},
		"requestauthentications": {
			{"{}", "spec.jwtRules", "Required"},
			{"{jwtRules: []}", "spec.jwtRules", "at least 1"},
			{"{jwtRules: [{jwks: '{}'}]}", inRule + ".issuer", "Required"},
			{"{jwtRules: [{issuer: '', jwks: '{}'}]}", inRule + ".issuer", "at least 1"},
			{"{jwtRules: [{issuer: me}]}", inRule + ".jwks", "either"},
			{in(rule, "jwksUri: 'https://issuer.example.com'"), inRule + ".jwks", "either"},
			{in(uri, "http://issuer.example.com/keys"), inRule + ".jwksUri", "should match"},
			{in(uri, "http://169.254.169.254/"), inRule + ".jwksUri", "should match"},
			{in(uri, "file:///etc/passwd"), inRule + ".jwksUri", "should match"},
			{in(uri, "https://"), inRule + ".jwksUri", "should match"},
			{in(uri, "https://user:word@issuer.example.com/"), inRule + ".jwksUri", "should match"},
			{in(uri, "https://issuer.example.com:port/"), inRule + ".jwksUri", "no URL"},
			{in(uri, "issuer.example.com/keys"), inRule + ".jwksUri", "should match"},
			{in(rule, "certificateAuthority: '-----BEGIN CERTIFICATE-----'"), inRule + ".certificateAuthority", "is for a jwksUri of https"},
			{"{jwtRules: [{issuer: me, jwksUri: 'http://issuer.auth.svc/keys', certificateAuthority: '-----BEGIN CERTIFICATE-----'}]}", inRule + ".certificateAuthority", "is for a jwksUri of https"},
			{"{jwtRules: [{issuer: me, jwksUri: 'https://issuer.example.com', certificateAuthority: '-----BEGIN PRIVATE KEY-----'}]}", inRule + ".certificateAuthority", "should match"},
			{"{jwtRules: [{issuer: me, jwksUri: 'https://issuer.example.com', certificateAuthority: ''}]}", inRule + ".certificateAuthority", "should match"},
			{in(rule, "algorithms: [none]"), inRule + ".algorithms[0]", "Unsupported value"},
			{in(rule, "algorithms: []"), inRule + ".algorithms", "at least 1"},
			{"{jwtRules: [{issuer: me, jwksUri: 'https://issuer.example.com', algorithms: [HS256]}]}", inRule + ".algorithms", "need a secret"},
			{in(rule, "audiences: ['']"), inRule + ".audiences[0]", "at least 1"},
			{in(rule, "fromHeaders: [{prefix: x}]"), inRule + ".fromHeaders[0].name", "Required"},
			{in(rule, "fromHeaders: [{name: 'a b'}]"), inRule + ".fromHeaders[0].name", "should match"},
			{in(rule, "fromHeaders: [{name: ':path'}]"), inRule + ".fromHeaders[0].name", "should match"},
			{in(rule, "fromParams: ['a=b']"), inRule + ".fromParams[0]", "should match"},
			{in(rule, "fromCookies: ['a;b']"), inRule + ".fromCookies[0]", "should match"},
			{in(rule, "outputClaimToHeaders: [{header: Host, claim: sub}]"), inRule + ".outputClaimToHeaders[0].header", "about the connection"},
			{in(rule, "outputClaimToHeaders: [{header: x, claim: 'a..b'}]"), inRule + ".outputClaimToHeaders[0].claim", "should match"},
			{in(rule, "forward: true"), inRule + ".forward", "unknown field"},
			{"{selector: {matchLabels: {app: web}}, targetRefs: [{kind: Service, name: web}], jwtRules: [{issuer: me, jwks: '{}'}]}", "spec.targetRefs", "only one of"},
			{"{targetRefs: [{kind: Pod, name: web}], jwtRules: [{issuer: me, jwks: '{}'}]}", "spec.targetRefs[0].kind", "kind Service"},
		},
	} {
		a := admissionOf(t, plural)
		for _, test := range tests {
			problems := a.admit(t, metadata+"spec: "+test.spec)
			found := false
			for _, problem := range problems {
				found = found || problem.Field == test.field && strings.Contains(problem.Error(), test.says)
			}
			if !found {
				t.Errorf("%s %s:\n  got  %v\n  want %s: %s", plural, test.spec, problems, test.field, test.says)
			}
		}
	}
}
