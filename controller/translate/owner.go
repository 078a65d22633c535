package translate

import (
	"cmp"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/api/workload"
)

// Labels by which people name their applications, the most deliberate first.
const (
	labelCanonicalName     = "service.istio.io/canonical-name"
	labelCanonicalRevision = "service.istio.io/canonical-revision"
	labelName              = "app.kubernetes.io/name"
	labelVersion           = "app.kubernetes.io/version"
	labelShortName         = "app"
	labelShortVersion      = "version"
	labelTemplateHash      = "pod-template-hash"

	// latestRevision is that of a workload without a version label.
	latestRevision = "latest"
)

// scheduledJob is a Job that a CronJob made: it appends the scheduled time in
// minutes since 1970 to its own name.
var scheduledJob = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// ownerOf names what a pod is one of: its Deployment, Job or CronJob; otherwise
// its controller, or itself.
func ownerOf(p *corev1.Pod) (string, workload.WorkloadType) {
	owner := metav1.GetControllerOf(p)
	if owner == nil {
		return p.Name, workload.WorkloadType_POD
	}
	switch owner.Kind {
	case "ReplicaSet":
		hash := p.Labels[labelTemplateHash]
		if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok && hash != "" {
			return name, workload.WorkloadType_DEPLOYMENT
		}
	case "Job":
		if m := scheduledJob.FindStringSubmatch(owner.Name); m != nil {
			return m[1], workload.WorkloadType_CRONJOB
		}
		return owner.Name, workload.WorkloadType_JOB
	case "CronJob":
		return owner.Name, workload.WorkloadType_CRONJOB
	}
	return owner.Name, workload.WorkloadType_POD
}

// canonicalName is what people call the application that a pod belongs to.
func canonicalName(labels map[string]string, workloadName string) string {
	return cmp.Or(labels[labelCanonicalName], labels[labelName], labels[labelShortName], workloadName)
}

// canonicalRevision is the version of the application.
func canonicalRevision(labels map[string]string) string {
	return cmp.Or(labels[labelCanonicalRevision], labels[labelVersion], labels[labelShortVersion], latestRevision)
}
