package check

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/cli/authority"
	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/cli/kube"
)

const (
	rootSecret    = "Secret ambit-system/ambit-ca"
	rootConfigMap = "ConfigMap ambit-system/ambit-ca-root"
	// rootWarning is how long before its end a root is worth a word: a change
	// of roots takes weeks in a big organisation.
	rootWarning = 60 * 24 * time.Hour
)

// askRoot looks at the Secret and at what nodes bootstrap their trust from.
func askRoot(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	secret, err := cluster.Typed.CoreV1().Secrets(install.Namespace).Get(ctx, "ambit-ca", metav1.GetOptions{})
	if s, _, readErr := authority.Read(ctx, cluster); readErr == nil && s.Issuer.Origin == "plug-in" {
		return nil, nil // AMB014 looks at what is plugged in
	}
	if apierrors.IsNotFound(err) {
		return lostRoot(ctx, cluster)
	}
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(secret.Data["tls.crt"], secret.Data["tls.key"])
	if err != nil {
		return []Finding{{
			Level: Error, Object: rootSecret, Reason: fmt.Sprintf("fields tls.crt and tls.key are no certificate and key: %v", err),
			Next: "put the original Secret back from a backup; the controller never overwrites it",
		}}, nil
	}
	if left := time.Until(pair.Leaf.NotAfter); left < rootWarning {
		level := Warning
		if left <= 0 {
			level = Error
		}
		return []Finding{{
			Level: level, Object: rootSecret, Reason: "the root ends on " + pair.Leaf.NotAfter.UTC().Format(time.DateOnly),
			Next: "ambit ca rotate --root",
		}}, nil
	}
	return agreement(ctx, cluster, pair.Leaf)
}

// askIssuer tells what the controller says of the issuer and of a rotation.
func askIssuer(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	s, _, err := authority.Read(ctx, cluster)
	if err != nil {
		return nil, err
	}
	if p := s.Problem; p != nil {
		object := p.Object
		if p.Field != "" {
			object += " field " + p.Field
		}
		return []Finding{{Level: Error, Object: object, Reason: p.Code + ": " + p.Detail, Next: p.Fix}}, nil
	}
	if len(s.Waiting) > 0 {
		return []Finding{{
			Level: Warning, Object: rootConfigMap, Reason: fmt.Sprintf("a rotation of the root waits for %v", s.Waiting),
			Next: "see that ztunnel is connected on these nodes; one that stays away is waited for up to 24 hours",
		}}, nil
	}
	return nil, nil
}

func lostRoot(ctx context.Context, cluster *kube.Cluster) ([]Finding, error) {
	_, err := cluster.Typed.CoreV1().ConfigMaps(install.Namespace).Get(ctx, "ambit-ca-root", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return []Finding{{Level: Error, Object: rootSecret, Reason: "it does not exist: " + notInstalled + ", or the controller could not start", Next: "ambit install"}}, nil
	}
	if err != nil {
		return nil, err
	}
	return []Finding{{
		Level: Error, Object: rootSecret, Reason: "the Secret is lost, while nodes still trust the root of " + rootConfigMap,
		Next: "put the Secret back from a backup; or delete the ConfigMap and restart the controller to accept a new root, which cuts every tunnel until all certificates are new",
	}}, nil
}

func agreement(ctx context.Context, cluster *kube.Cluster, root *x509.Certificate) ([]Finding, error) {
	bundle, err := cluster.Typed.CoreV1().ConfigMaps(install.Namespace).Get(ctx, "ambit-ca-root", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return []Finding{{Level: Error, Object: rootConfigMap, Reason: "it does not exist, so new ztunnels cannot trust the controller", Next: "see the controller's log: it writes this ConfigMap"}}, nil
	}
	if err != nil {
		return nil, err
	}
	for rest := []byte(bundle.Data["root-cert.pem"]); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if bytes.Equal(block.Bytes, root.Raw) {
			return nil, nil
		}
	}
	return []Finding{{
		Level: Error, Object: rootConfigMap, Reason: "field root-cert.pem does not contain the root of " + rootSecret,
		Next: "see the controller's log: it writes this ConfigMap",
	}}, nil
}
