package workload

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/mesh"
	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// errRevocationsStay: what is revoked no longer is said by a list without it.
var errRevocationsStay = errors.New("removed, but what is revoked stays so: an empty list is sent if nothing is")

// applyRevocations lets no list be removed: without one, everything revoked would
// be accepted again.
func (e *edit) applyRevocations(d Delta) (rejected []Rejection) {
	for _, name := range d.Removed {
		if _, known := e.next.revocations[name]; known {
			rejected = append(rejected, e.settle(Resource{Name: name}, d.Type, nil, errRevocationsStay)...)
		}
	}
	d.Removed = nil
	next, unread := applyNamed(e, d, e.next.revocations, byName, func() *mesh.RevocationList { return &mesh.RevocationList{} }, parseRevocations)
	e.next.revocations = next
	return append(rejected, unread...)
}

// parseRevocations reads a list as a whole or not at all. What this version does
// not know could be what revokes: it is refused, too.
func parseRevocations(name string, m *mesh.RevocationList) (*revocation.List, error) {
	if m.GetTrustDomain() == "" || m.GetTrustDomain() != name {
		return nil, fmt.Errorf("trust_domain: %q, want the resource's name", m.GetTrustDomain())
	}
	if unknown(m) {
		return nil, errors.New("it has fields that this version does not know")
	}
	var certificates []revocation.Certificate
	seen := map[string]bool{}
	for i, of := range m.GetCertificates() {
		switch {
		case unknown(of):
			return nil, fmt.Errorf("certificates[%d]: it has fields that this version does not know", i)
		case seen[of.GetIssuer()]:
			return nil, fmt.Errorf("certificates[%d].issuer: %s is there twice", i, of.GetIssuer())
		case len(of.GetSerials()) == 0:
			return nil, fmt.Errorf("certificates[%d].serials: empty", i)
		}
		seen[of.GetIssuer()] = true
		for _, serial := range of.GetSerials() {
			certificates = append(certificates, revocation.Certificate{Issuer: of.GetIssuer(), Serial: serial})
		}
	}
	var identities []revocation.Identity
	for i, of := range m.GetIdentities() {
		if unknown(of) {
			return nil, fmt.Errorf("identities[%d]: it has fields that this version does not know", i)
		}
		id, err := spiffe.Parse(of.GetIdentity())
		if err != nil {
			return nil, fmt.Errorf("identities[%d].identity: %w", i, err)
		}
		identities = append(identities, revocation.Identity{ID: id, BegunBefore: time.Unix(of.GetBegunBefore(), 0)})
	}
	return revocation.New(certificates, identities)
}

func unknown(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }
