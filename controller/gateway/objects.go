package gateway

import (
	"fmt"
	"maps"
	"net/url"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	gwapi "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/binding"
)

const (
	// rootsName of the ConfigMap with the roots, in each waypoint's namespace, as it
	// is called in the system namespace.
	rootsName = "ambit-ca-root"
	rootsKey  = "root-cert.pem"
	// replicasAnnotation, on a Gateway, is the number of pods; without it that is
	// whoever else's who sets it, a HorizontalPodAutoscaler's for one.
	replicasAnnotation = "ambit.mesh/replicas"
	// collectorAnnotation, on a Gateway, is where its waypoint sends spans, by OTLP over
	// gRPC; without it there are none. samplingAnnotation is of how many requests in a
	// hundred, if their clients have not decided that; without it of all.
	collectorAnnotation = "ambit.mesh/otlp-endpoint"
	samplingAnnotation  = "ambit.mesh/trace-sampling"
	// logFormatAnnotation, on a Gateway, is the format of its waypoint's log, text or
	// json; without it that of the controller's.
	logFormatAnnotation = "ambit.mesh/log-format"
	// dataplaneModeLabel keeps the pods from being captured.
	dataplaneModeLabel = "ambit.mesh/dataplane-mode"

	metricsPort   = 15020
	readinessPort = 15021
	// grace is what a pod gets to let its streams end.
	grace = 45
	// nobody is who the process runs as.
	nobody = 65534
)

// Settings are what all waypoints have in common.
type Settings struct {
	// Image of the waypoint.
	Image string
	// Controller is where waypoints get configuration and certificates, https://HOST:PORT.
	Controller             string
	ClusterID, TrustDomain string
	LogFormat, LogLevel    string
}

// wanted are the objects of one Gateway, in the order in which they are applied.
type wanted struct {
	roots      *corev1.ConfigMap
	account    *corev1.ServiceAccount
	service    *corev1.Service
	deployment *appsv1.Deployment
	budget     *policyv1.PodDisruptionBudget
}

// objectsOf a Gateway. roots are PEM.
func objectsOf(g *gwapi.Gateway, roots string, s Settings) (wanted, error) {
	labels := map[string]string{binding.GatewayLabel: g.Name, "app.kubernetes.io/part-of": "ambit"}
	annotations := map[string]string{}
	if g.Spec.Infrastructure != nil {
		for key, value := range g.Spec.Infrastructure.Labels {
			if _, ours := labels[string(key)]; !ours {
				labels[string(key)] = string(value)
			}
		}
		for key, value := range g.Spec.Infrastructure.Annotations {
			annotations[string(key)] = string(value)
		}
	}
	meta := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{
			Namespace: g.Namespace, Name: name, Labels: labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: gwapi.GroupVersion.String(), Kind: "Gateway", Name: g.Name, UID: g.UID,
				Controller: new(true), BlockOwnerDeletion: new(true),
			}},
		}
	}
	replicas, err := replicasOf(g)
	if err != nil {
		return wanted{}, err
	}
	tracing, err := tracingOf(g)
	if err != nil {
		return wanted{}, err
	}
	if s.LogFormat, err = logFormatOf(g, s.LogFormat); err != nil {
		return wanted{}, err
	}
	selector := map[string]string{binding.GatewayLabel: g.Name}
	return wanted{
		// Of all waypoints of the namespace: nobody's to take along.
		roots: &corev1.ConfigMap{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: metav1.ObjectMeta{Namespace: g.Namespace, Name: rootsName, Labels: map[string]string{"app.kubernetes.io/part-of": "ambit"}},
			Data:       map[string]string{rootsKey: roots},
		},
		account: &corev1.ServiceAccount{
			TypeMeta:                     metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
			ObjectMeta:                   meta(g.Name),
			AutomountServiceAccountToken: new(false),
		},
		service: &corev1.Service{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
			ObjectMeta: meta(g.Name),
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, Selector: selector,
				Ports: []corev1.ServicePort{{
					Name: binding.Listener, Port: binding.Port, Protocol: corev1.ProtocolTCP,
					TargetPort: intstr.FromInt32(binding.Port), AppProtocol: new("tcp"),
				}},
			},
		},
		deployment: &appsv1.Deployment{
			TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
			ObjectMeta: meta(g.Name),
			Spec: appsv1.DeploymentSpec{
				Replicas: replicas,
				Selector: &metav1.LabelSelector{MatchLabels: selector},
				Strategy: appsv1.DeploymentStrategy{
					Type: appsv1.RollingUpdateDeploymentStrategyType,
					RollingUpdate: &appsv1.RollingUpdateDeployment{
						MaxSurge: new(intstr.FromInt32(1)), MaxUnavailable: new(intstr.FromInt32(0)),
					},
				},
				Template: podOf(g, labels, annotations, tracing, s),
			},
		},
		budget: &policyv1.PodDisruptionBudget{
			TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"},
			ObjectMeta: meta(g.Name),
			Spec: policyv1.PodDisruptionBudgetSpec{
				MaxUnavailable: new(intstr.FromInt32(1)),
				Selector:       &metav1.LabelSelector{MatchLabels: selector},
			},
		},
	}, nil
}

func replicasOf(g *gwapi.Gateway) (*int32, error) {
	value, ok := g.Annotations[replicasAnnotation]
	if !ok {
		return nil, nil
	}
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("metadata.annotations[%s]: %q is no number of pods", replicasAnnotation, value)
	}
	return new(int32(n)), nil
}

func logFormatOf(g *gwapi.Gateway, otherwise string) (string, error) {
	switch format, ok := g.Annotations[logFormatAnnotation]; {
	case !ok:
		return otherwise, nil
	case format != "text" && format != "json":
		return "", fmt.Errorf("metadata.annotations[%s]: %q is neither text nor json", logFormatAnnotation, format)
	default:
		return format, nil
	}
}

// tracingOf is what a waypoint's environment says of spans.
func tracingOf(g *gwapi.Gateway) ([]corev1.EnvVar, error) {
	endpoint, wanted := g.Annotations[collectorAnnotation]
	percent, limited := g.Annotations[samplingAnnotation]
	if !wanted {
		if limited {
			return nil, fmt.Errorf("metadata.annotations[%s]: is of no use without %s", samplingAnnotation, collectorAnnotation)
		}
		return nil, nil
	}
	if to, err := url.Parse(endpoint); err != nil || to.Scheme != "http" && to.Scheme != "https" || to.Hostname() == "" || to.Port() == "" || strings.Trim(to.Path, "/") != "" {
		return nil, fmt.Errorf("metadata.annotations[%s]: %q is not http://HOST:PORT or https://HOST:PORT", collectorAnnotation, endpoint)
	}
	share := 100.0
	if limited {
		var err error
		if share, err = strconv.ParseFloat(percent, 64); err != nil || !(share >= 0 && share <= 100) {
			return nil, fmt.Errorf("metadata.annotations[%s]: %q is no number from 0 to 100", samplingAnnotation, percent)
		}
	}
	return []corev1.EnvVar{
		{Name: "OTEL_EXPORTER_OTLP_ENDPOINT", Value: endpoint},
		{Name: "OTEL_TRACES_SAMPLER", Value: "parentbased_traceidratio"},
		{Name: "OTEL_TRACES_SAMPLER_ARG", Value: strconv.FormatFloat(share/100, 'g', -1, 64)},
	}, nil
}

func podOf(g *gwapi.Gateway, labels, annotations map[string]string, tracing []corev1.EnvVar, s Settings) corev1.PodTemplateSpec {
	labels = maps.Clone(labels)
	labels[dataplaneModeLabel] = "none"
	spread := func(key string) corev1.TopologySpreadConstraint {
		return corev1.TopologySpreadConstraint{
			MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: corev1.ScheduleAnyway,
			LabelSelector:  &metav1.LabelSelector{MatchLabels: map[string]string{binding.GatewayLabel: g.Name}},
			MatchLabelKeys: []string{"pod-template-hash"},
		}
	}
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
	}
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations},
		Spec: corev1.PodSpec{
			ServiceAccountName:            g.Name,
			AutomountServiceAccountToken:  new(false),
			TerminationGracePeriodSeconds: new(int64(grace)),
			NodeSelector:                  map[string]string{corev1.LabelOSStable: "linux"},
			TopologySpreadConstraints:     []corev1.TopologySpreadConstraint{spread(corev1.LabelHostname), spread(corev1.LabelTopologyZone)},
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true), RunAsUser: new(int64(nobody)), RunAsGroup: new(int64(nobody)),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Volumes: []corev1.Volume{
				{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
					{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "ambit-ca", ExpirationSeconds: new(int64(3600)), Path: "ambit-token"}},
				}}}},
				{Name: "roots", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
					LocalObjectReference: corev1.LocalObjectReference{Name: rootsName},
				}}},
			},
			Containers: []corev1.Container{{
				Name: "waypoint", Image: s.Image, ImagePullPolicy: corev1.PullIfNotPresent,
				Env: append([]corev1.EnvVar{
					field("NODE_NAME", "spec.nodeName"), field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"), field("POD_IP", "status.podIP"),
					{Name: "GATEWAY_NAME", Value: g.Name},
					{Name: "CONTROLLER_ADDRESS", Value: s.Controller},
					{Name: "CLUSTER_ID", Value: s.ClusterID}, {Name: "TRUST_DOMAIN", Value: s.TrustDomain},
					{Name: "TERMINATION_GRACE_PERIOD_SECONDS", Value: strconv.Itoa(grace)},
					{Name: "LOG_FORMAT", Value: s.LogFormat}, {Name: "LOG_LEVEL", Value: s.LogLevel},
				}, tracing...),
				Ports: []corev1.ContainerPort{
					{Name: binding.Listener, ContainerPort: binding.Port, Protocol: corev1.ProtocolTCP},
					{Name: "metrics", ContainerPort: metricsPort, Protocol: corev1.ProtocolTCP},
					{Name: "readiness", ContainerPort: readinessPort, Protocol: corev1.ProtocolTCP},
				},
				ReadinessProbe: &corev1.Probe{
					ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromString("readiness")}},
					PeriodSeconds: 1,
				},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
				}},
				VolumeMounts: []corev1.VolumeMount{
					{Name: "token", MountPath: "/var/run/secrets/tokens", ReadOnly: true},
					{Name: "roots", MountPath: "/var/run/secrets/ambit", ReadOnly: true},
				},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}

// each visits the objects in order.
func (w wanted) each(visit func(resource string, o runtime.Object, meta metav1.Object) error) error {
	for _, o := range []struct {
		resource string
		object   runtime.Object
		meta     metav1.Object
	}{
		{"configmaps", w.roots, w.roots}, {"serviceaccounts", w.account, w.account}, {"services", w.service, w.service},
		{"deployments", w.deployment, w.deployment}, {"poddisruptionbudgets", w.budget, w.budget},
	} {
		if err := visit(o.resource, o.object, o.meta); err != nil {
			return err
		}
	}
	return nil
}
