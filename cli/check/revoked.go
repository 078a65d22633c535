package check

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/cli/authority"
	"github.com/ambit-mesh/ambit/cli/kube"
)

const revokedConfigMap = "ConfigMap ambit-system/ambit-ca-revoked"

// askRevoked looks at the list of what is revoked, and at what the controller says
// of it.
func askRevoked(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	_, status, err := authority.ReadRevoked(ctx, cluster)
	switch {
	case errors.Is(err, authority.ErrNoList):
		return lostRevocations(ctx, cluster)
	case err != nil:
		return []Finding{{
			Level: Error, Object: revokedConfigMap, Reason: err.Error(),
			Next: "a running controller puts it back by itself; one that starts serves nobody until it is restored from a backup, see its log",
		}}, nil
	}
	if p := status.Problem; p != nil {
		object := p.Object
		if p.Field != "" {
			object += " field " + p.Field
		}
		return []Finding{{Level: Error, Object: object, Reason: p.Code + ": " + p.Detail, Next: p.Fix}}, nil
	}
	if len(status.Waiting) > 0 {
		return []Finding{{
			Level: Warning, Object: revokedConfigMap, Reason: fmt.Sprintf("version %d of what is revoked is not known to %s", status.Version, strings.Join(status.Waiting, ", ")),
			Next: "see that ztunnel is connected on these nodes: until it is, revoked certificates are accepted there",
		}}, nil
	}
	return nil, nil
}

func lostRevocations(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	was, err := authority.WasRevoked(ctx, cluster)
	if err != nil {
		return nil, err
	}
	if was {
		return []Finding{{
			Level: Error, Object: revokedConfigMap, Reason: "the list is gone, and something was revoked",
			Next: "a running controller puts it back by itself; for one that starts, restore it from a backup, or delete the annotation ambit.mesh/revoked of " + rootConfigMap + " to revoke nothing from here on",
		}}, nil
	}
	return []Finding{{
		Level: Warning, Object: revokedConfigMap, Reason: "the controller has not made it yet: nothing can be revoked",
		Next: "see that the controller is available, and its log",
	}}, nil
}
