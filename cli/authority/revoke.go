package authority

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/workloads"
	"github.com/ambit-mesh/ambit/internal/revocation"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

const (
	revokedConfigMap = "ambit-ca-revoked"
	listKey          = "list.json"
	requestPrefix    = "request."
	// lostAnnotation on the ConfigMap ambit-ca-root tells that there was a list.
	lostAnnotation = "ambit.mesh/revoked"
	// askInterval is how often it is looked what became of a request.
	askInterval = 250 * time.Millisecond
)

// Revoked is what is revoked, as the controller writes it.
type Revoked struct {
	Version int
	Entries []struct {
		Issuer, Serial, Identity      string
		BegunBefore, Revoked, Expires time.Time
		Note                          string
	}
	CRLs []struct {
		Issuer, Subject, Number string
		ThisUpdate, NextUpdate  time.Time
		Serials                 []string
	}
	Outcomes []struct {
		Request, Refused string
	}
}

// RevokedStatus is what the controller says of it.
type RevokedStatus struct {
	Version int
	Waiting []string
	Problem *Problem
}

// ErrNoList says that there is no list: the controller has made none yet, or it is
// lost.
var ErrNoList = errors.New("there is no list of what is revoked")

// ReadRevoked returns what is revoked, and what the controller says of it.
func ReadRevoked(ctx context.Context, cluster *kube.Cluster) (Revoked, RevokedStatus, error) {
	found, err := cluster.Typed.CoreV1().ConfigMaps(install.Namespace).Get(ctx, revokedConfigMap, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return Revoked{}, RevokedStatus{}, ErrNoList
	case err != nil:
		return Revoked{}, RevokedStatus{}, fmt.Errorf("read ConfigMap %s/%s: %w", install.Namespace, revokedConfigMap, err)
	}
	text, there := found.Data[listKey]
	if !there {
		return Revoked{}, RevokedStatus{}, ErrNoList
	}
	var list Revoked
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return Revoked{}, RevokedStatus{}, fmt.Errorf("read %s of ConfigMap %s/%s: %w", listKey, install.Namespace, revokedConfigMap, err)
	}
	var status RevokedStatus
	if err := json.Unmarshal([]byte(found.Data[statusKey]), &status); err != nil {
		return list, RevokedStatus{}, fmt.Errorf("read %s of ConfigMap %s/%s: %w", statusKey, install.Namespace, revokedConfigMap, err)
	}
	return list, status, nil
}

// WasRevoked tells whether the controller has noted that there is a list with
// something in it.
func WasRevoked(ctx context.Context, cluster *kube.Cluster) (bool, error) {
	found, err := cluster.Typed.CoreV1().ConfigMaps(install.Namespace).Get(ctx, configMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil && found.Annotations[lostAnnotation] != "", err
}

func printRevocations(ctx context.Context, cluster *kube.Cluster, out io.Writer) error {
	list, status, err := ReadRevoked(ctx, cluster)
	if errors.Is(err, ErrNoList) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(list.Entries) > 0 {
		fmt.Fprintln(out)
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "REVOKED\tAT\tUNTIL\tISSUER\tNOTE")
		for _, e := range list.Entries {
			what, issuer := e.Serial, fmt.Sprintf("%.16s", e.Issuer)
			if e.Identity != "" {
				what, issuer = e.Identity, "-"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", what, e.Revoked.Format(time.RFC3339), e.Expires.Format(time.RFC3339), issuer, e.Note)
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if len(list.CRLs) > 0 {
		fmt.Fprintln(out)
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "CRL OF\tREVOKED\tOF\tGOOD UNTIL")
		for _, crl := range list.CRLs {
			fmt.Fprintf(table, "%s\t%d\t%s\t%s\n", crl.Subject, len(crl.Serials), crl.ThisUpdate.Format(time.RFC3339), crl.NextUpdate.Format(time.RFC3339))
		}
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if len(status.Waiting) > 0 {
		fmt.Fprintf(out, "\nwhat is revoked is not known yet to: %s\n", strings.Join(status.Waiting, ", "))
	}
	if status.Problem != nil {
		status.Problem.print(out)
	}
	return nil
}

// printJSON shows both as one document.
func printJSON(ctx context.Context, cluster *kube.Cluster, status string, out io.Writer) error {
	whole := map[string]json.RawMessage{}
	if err := json.Unmarshal([]byte(status), &whole); err != nil {
		return err
	}
	found, err := cluster.Typed.CoreV1().ConfigMaps(install.Namespace).Get(ctx, revokedConfigMap, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read ConfigMap %s/%s: %w", install.Namespace, revokedConfigMap, err)
	}
	if err == nil && found.Data[listKey] != "" {
		whole["revoked"], whole["revokedStatus"] = json.RawMessage(found.Data[listKey]), json.RawMessage(found.Data[statusKey])
	}
	text, err := json.MarshalIndent(whole, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, string(text))
	return err
}

// Revocation is what to revoke: a certificate, or an identity.
type Revocation struct {
	Serial   string `json:"serial,omitempty"`
	Issuer   string `json:"issuer,omitempty"`
	Identity string `json:"identity,omitempty"`
	Note     string `json:"note,omitempty"`
}

func (r Revocation) String() string {
	if r.Identity != "" {
		return "every certificate of " + r.Identity + " that was issued up to now"
	}
	return "certificate " + r.Serial
}

// Check says what is wrong with a revocation, or with the pod whose certificate it
// is to be; and spells it as the controller does.
func (r *Revocation) Check(pod string) error {
	given := 0
	for _, one := range []string{r.Serial, r.Identity, pod} {
		if one != "" {
			given++
		}
	}
	if given != 1 {
		return errors.New("exactly one is needed: a serial number, --identity or --pod; `ambit workloads -o wide` shows both of every pod")
	}
	if r.Issuer != "" && r.Identity != "" {
		return errors.New("--issuer goes with a certificate, not with --identity")
	}
	if r.Identity != "" {
		if _, err := spiffe.Parse(r.Identity); err != nil {
			return fmt.Errorf("--identity: %w", err)
		}
	}
	if r.Serial != "" {
		if strings.HasPrefix(r.Serial, "spiffe://") {
			return fmt.Errorf("%q is an identity: give it with --identity", r.Serial)
		}
		serial, err := revocation.Serial(r.Serial)
		if err != nil {
			return err
		}
		r.Serial = serial
	}
	return nil
}

// SerialOf returns the serial number of the certificate that a pod, namespace/name,
// has now.
func SerialOf(ctx context.Context, cluster *kube.Cluster, pod string) (string, error) {
	namespace, name, ok := strings.Cut(pod, "/")
	if !ok || namespace == "" || name == "" {
		return "", fmt.Errorf("--pod %q: namespace/name is needed", pod)
	}
	all, err := workloads.List(ctx, cluster, namespace, time.Now())
	if err != nil {
		return "", err
	}
	for _, w := range all {
		switch {
		case w.Name != name:
		case w.Status.CertificateSerial == "":
			return "", fmt.Errorf("pod %s has no certificate that is known: its state is %s; revoke its identity with --identity %s", pod, w.Status.State, w.Spec.Identity)
		default:
			return w.Status.CertificateSerial, nil
		}
	}
	return "", fmt.Errorf("no workload is called %s; `ambit workloads -n %s` lists them", pod, namespace)
}

// Revoke asks the controller, and waits for its answer and for the nodes'.
func Revoke(ctx context.Context, cluster *kube.Cluster, r Revocation, wait time.Duration, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	name := strings.ToLower(rand.Text())
	if err := ask(ctx, cluster, name, r); err != nil {
		return err
	}
	asked := false
	for {
		list, status, err := ReadRevoked(ctx, cluster)
		if err != nil && !errors.Is(err, ErrNoList) && ctx.Err() == nil {
			return err
		}
		for _, outcome := range list.Outcomes {
			if outcome.Request != name {
				continue
			}
			if outcome.Refused != "" {
				return fmt.Errorf("the controller refuses: %s", outcome.Refused)
			}
			if !asked {
				fmt.Fprintf(out, "revoked: %s\n", r)
				asked = true
			}
			if status.Version == list.Version && len(status.Waiting) == 0 {
				fmt.Fprintln(out, "in force on every node")
				return nil
			}
		}
		select {
		case <-time.After(askInterval):
			continue
		case <-ctx.Done():
		}
		if asked {
			return fmt.Errorf("it is not known yet to %s: `ambit ca status` shows how far it is; see that ztunnel is connected there", strings.Join(status.Waiting, ", "))
		}
		return fmt.Errorf("the controller has not answered within %s, and does so when it is there: see `ambit check`; the request is field %s%s of ConfigMap %s/%s",
			wait, requestPrefix, name, install.Namespace, revokedConfigMap)
	}
}

// ask writes a request.
func ask(ctx context.Context, cluster *kube.Cluster, name string, r Revocation) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"data": map[string]string{requestPrefix + name: string(text)}})
	if err != nil {
		return err
	}
	configMaps := cluster.Typed.CoreV1().ConfigMaps(install.Namespace)
	_, err = configMaps.Patch(ctx, revokedConfigMap, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		_, err = configMaps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: revokedConfigMap, Namespace: install.Namespace, Labels: map[string]string{"app.kubernetes.io/part-of": "ambit"}},
			Data:       map[string]string{requestPrefix + name: string(text)},
		}, metav1.CreateOptions{})
	}
	if err != nil {
		return fmt.Errorf("ask for the revocation in ConfigMap %s/%s: %w", install.Namespace, revokedConfigMap, err)
	}
	return nil
}
