package translate

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/ambit-mesh/ambit/api/security"
)

const maxPort = 65535

// convert reads the values of a field. One that means nothing makes the rule
// invalid: left out it would widen an ALLOW that excludes it, or a DENY that is
// about nothing else.
func convert[V ~string, W any](c *conversion, field string, values []V, parse func(string) (W, error)) []W {
	var out []W
	for i, v := range values {
		w, err := parse(string(v))
		if err != nil {
			c.invalid(fmt.Sprintf("%s[%d]", field, i), err.Error())
			continue
		}
		out = append(out, w)
	}
	return out
}

// stringMatch reads a value with a * at the beginning or at the end, or alone.
func stringMatch(v string) (*security.StringMatch, error) {
	prefix, isPrefix := strings.CutSuffix(v, "*")
	suffix, isSuffix := strings.CutPrefix(v, "*")
	switch {
	case v == "":
		return nil, fmt.Errorf("is empty")
	case v == "*":
		return &security.StringMatch{MatchType: &security.StringMatch_Presence{Presence: &emptypb.Empty{}}}, nil
	case isPrefix && !strings.Contains(prefix, "*"):
		return &security.StringMatch{MatchType: &security.StringMatch_Prefix{Prefix: prefix}}, nil
	case isSuffix && !strings.Contains(suffix, "*"):
		return &security.StringMatch{MatchType: &security.StringMatch_Suffix{Suffix: suffix}}, nil
	case strings.Contains(v, "*"):
		return nil, fmt.Errorf("%q has a * that is neither at the beginning nor at the end", v)
	}
	return &security.StringMatch{MatchType: &security.StringMatch_Exact{Exact: v}}, nil
}

// principal is an identity as the protocol has it, without spiffe://.
func principal(v string) (*security.StringMatch, error) {
	if strings.HasPrefix(v, "spiffe://") {
		return nil, fmt.Errorf("%q is to be written without spiffe://", v)
	}
	return stringMatch(v)
}

// serviceAccount is namespace/name, or a name in the policy's namespace.
func (c *conversion) serviceAccount(v string) (*security.ServiceAccountMatch, error) {
	namespace, name, ok := strings.Cut(v, "/")
	if !ok {
		namespace, name = c.policy.Namespace, v
	}
	if namespace == "" || name == "" || strings.ContainsAny(name, "/*") || strings.Contains(namespace, "*") {
		return nil, fmt.Errorf("%q is no service account, NAMESPACE/NAME or NAME", v)
	}
	return &security.ServiceAccountMatch{Namespace: namespace, ServiceAccount: name}, nil
}

// ipBlock is an address or a range of them.
func ipBlock(v string) (*security.Address, error) {
	if addr, ok := parseAddr(v); ok {
		return &security.Address{Address: addr.AsSlice(), Length: uint32(addr.BitLen())}, nil
	}
	prefix, err := netip.ParsePrefix(v)
	if err != nil || prefix.Addr().Is4In6() {
		return nil, fmt.Errorf("%q is neither an address nor a CIDR", v)
	}
	prefix = prefix.Masked()
	return &security.Address{Address: prefix.Addr().AsSlice(), Length: uint32(prefix.Bits())}, nil
}

func portNumber(v string) (uint32, error) {
	port, err := strconv.ParseUint(v, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%q is no port, 1 to %d", v, maxPort)
	}
	return uint32(port), nil
}
