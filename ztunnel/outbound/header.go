package outbound

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// header is what the request for a connection says about it. The far side may
// log it, and trusts none of it.
func header(source *workload.Workload, client netip.AddrPort) http.Header {
	return http.Header{
		"Baggage":     {baggage(source)},
		"Forwarded":   {`for="` + client.String() + `"`},
		"Traceparent": {traceparent()},
	}
}

// baggage describes the source by the attributes of OpenTelemetry's resource
// conventions (W3C Baggage section 3.3.1).
func baggage(w *workload.Workload) string {
	kind := w.Kind
	if kind == "" {
		kind = "pod"
	}
	var members []string
	for _, m := range [][2]string{
		{"k8s.cluster.name", w.ClusterID},
		{"k8s.namespace.name", w.Namespace},
		{"k8s." + kind + ".name", w.Owner},
		{"service.name", w.CanonicalName},
		{"service.version", w.CanonicalRevision},
		{"cloud.region", w.Locality.Region},
		{"cloud.availability_zone", w.Locality.Zone},
	} {
		if m[1] != "" {
			members = append(members, m[0]+"="+url.PathEscape(m[1]))
		}
	}
	return strings.Join(members, ",")
}

// traceparent starts a trace for the connection (W3C Trace Context section
// 3.2); it is not sampled.
func traceparent() string {
	// The specification forbids ids of zeros only.
	return fmt.Sprintf("00-%016x%016x-%016x-00", rand.Uint64(), rand.Uint64()|1, rand.Uint64()|1)
}
