package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/ambit-mesh/ambit/controller/translate"
	"github.com/ambit-mesh/ambit/internal/binding"
)

// How tells how far a binding is: one of package binding's reasons.
func How(b *translate.Bound, inForce bool) string {
	switch {
	case b.Leaving:
		return binding.Leaving
	case b.Problem != "":
		return b.Reason
	case b.Direct:
		return binding.Direct
	case b.Uncaptured > 0:
		return binding.NotCaptured
	case !inForce:
		return binding.Pending
	}
	return binding.InForce
}

// describeBound is the condition of a Service that is bound, or wants to be.
func describeBound(s *corev1.Service, b *translate.Bound, inForce bool, now metav1.Time) metav1.Condition {
	c := metav1.Condition{
		Type: binding.Condition, Status: metav1.ConditionFalse, Reason: How(b, inForce),
		ObservedGeneration: s.Generation, LastTransitionTime: now,
	}
	switch c.Reason {
	case binding.InForce:
		c.Status = metav1.ConditionTrue
		c.Message = fmt.Sprintf("clients go through waypoint %s, and nobody else is let in", b.Waypoint)
	case binding.Direct:
		c.Status = metav1.ConditionTrue
		c.Message = fmt.Sprintf("clients go through waypoint %s while it has pods; others are let in, as annotation %s says", b.Waypoint, binding.FallbackAnnotation)
	case binding.Pending:
		const until = "until every node has acknowledged that"
		switch takesOver := b.From.Name != ""; {
		case b.Stage == translate.Announced && takesOver:
			c.Message = fmt.Sprintf("clients go through waypoint %s until waypoint %s is ready and knows of it, and every node knows that", b.From, b.Waypoint)
		case b.Stage == translate.Announced:
			c.Message = fmt.Sprintf("clients go straight to it until waypoint %s is ready and knows of it, and every node knows that", b.Waypoint)
		case takesOver:
			c.Message = fmt.Sprintf("clients are sent through waypoint %s; waypoint %s, and nobody else, is let in besides %s", b.Waypoint, b.From, until)
		default:
			c.Message = fmt.Sprintf("clients are sent through waypoint %s; others are let in %s", b.Waypoint, until)
		}
	case binding.Leaving:
		c.Message = fmt.Sprintf("it is not bound any more: clients are sent through waypoint %s, and others are let in, until every node has acknowledged that", b.Waypoint)
		if b.Stage == translate.Announced {
			c.Message = fmt.Sprintf("it is not bound any more: clients go straight to it, and those who came through waypoint %s before have some seconds to end", b.Waypoint)
		}
	case binding.NotCaptured:
		c.Message = fmt.Sprintf("clients are sent through waypoint %s, but whoever addresses its endpoints gets past it: %d of them are not captured", b.Waypoint, b.Uncaptured)
	default:
		c.Message = b.Problem
	}
	return since(c, s)
}

// describeReady is the condition that says whether a Service's waypoint can do its part;
// none as long as nobody knows.
func describeReady(s *corev1.Service, b *translate.Bound, ready string, now metav1.Time) (c metav1.Condition, known bool) {
	c = metav1.Condition{
		Type: binding.ReadyCondition, Status: metav1.ConditionFalse, Reason: ready, Message: b.Problem,
		ObservedGeneration: s.Generation, LastTransitionTime: now,
	}
	switch ready {
	case "":
		if present := meta.FindStatusCondition(s.Status.Conditions, c.Type); present != nil {
			return *present, true
		}
		return c, false
	case binding.Ready:
		c.Status = metav1.ConditionTrue
		c.Message = fmt.Sprintf("waypoint %s has pods that are ready, and all of them work with the newest configuration of this Service", b.Waypoint)
	case binding.NotReady:
		c.Message = fmt.Sprintf("waypoint %s has no pod that is ready", b.Waypoint)
	case binding.NotAcknowledged:
		c.Message = fmt.Sprintf("not all pods of waypoint %s have acknowledged the newest configuration of this Service: their logs say why", b.Waypoint)
	}
	return since(c, s), true
}

// since has a condition that says what a Service's says bear its time.
func since(c metav1.Condition, s *corev1.Service) metav1.Condition {
	if old := meta.FindStatusCondition(s.Status.Conditions, c.Type); old != nil && old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	return c
}

// services says on each Service what became of its binding, and nothing on those
// that are not bound any more.
func (r *Reconciler) services(ctx context.Context, services []*corev1.Service, bound []*translate.Bound, now metav1.Time) error {
	byUID := make(map[types.UID]*translate.Bound, len(bound))
	for _, b := range bound {
		if b.Kind == "Service" {
			byUID[b.UID] = b
		}
	}
	var errs []error
	for _, s := range services {
		var present, conditions []metav1.Condition
		for _, kind := range []string{binding.Condition, binding.ReadyCondition} {
			if c := meta.FindStatusCondition(s.Status.Conditions, kind); c != nil {
				present = append(present, *c)
			}
		}
		if b := byUID[s.UID]; b != nil {
			conditions = append(conditions, describeBound(s, b, r.cfg.InForce(b), now))
			if b.Stage > 0 && !b.Leaving {
				if c, known := describeReady(s, b, r.cfg.Ready(b), now); known {
					conditions = append(conditions, c)
				}
			}
		}
		if s.DeletionTimestamp != nil || slices.Equal(present, conditions) {
			continue
		}
		if err := r.applyConditions(ctx, s, conditions); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("apply status of Service %s/%s: %w", s.Namespace, s.Name, err))
		}
	}
	return errors.Join(errs...)
}

// applyConditions, under a name of their own, which takes back nothing of what is
// applied for a Gateway, has a Service bear these of ours, and no others of ours.
func (r *Reconciler) applyConditions(ctx context.Context, s *corev1.Service, conditions []metav1.Condition) error {
	status := map[string]any{}
	if len(conditions) > 0 {
		status["conditions"] = conditions
	}
	body, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Service", "status": status,
		// Of this very one, not of one that was made since.
		"metadata": map[string]any{"namespace": s.Namespace, "name": s.Name, "uid": s.UID},
	})
	if err != nil {
		return err
	}
	_, err = r.cfg.Client.CoreV1().Services(s.Namespace).Patch(ctx, s.Name, types.ApplyYAMLPatchType, body,
		metav1.PatchOptions{FieldManager: binding.ConditionManager, Force: new(true)}, "status")
	r.count("Service", err)
	return err
}
