package main

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// replica takes part in elections on a shared cluster; its leader's work lasts
// until its term or its own context ends.
func replica(t *testing.T, cluster *fake.Clientset, name string) (leads chan struct{}, stop func()) {
	t.Helper()
	p := &parts{client: cluster, settings: settings{namespace: "ambit-system", podName: name}, logger: slog.New(slog.DiscardHandler)}
	leads = make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := p.leadWith(ctx, func(term context.Context) error {
			leads <- struct{}{}
			<-term.Done()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return leads, stop
}

// A controller that is replaced hands over: its successor does not wait for the
// Lease to expire.
func TestLeadershipIsHandedOver(t *testing.T) {
	cluster := fake.NewClientset()
	first, stopFirst := replica(t, cluster, "first")
	awaitLead(t, first)
	second, _ := replica(t, cluster, "second")
	select {
	case <-second:
		t.Fatal("two leaders")
	case <-time.After(100 * time.Millisecond):
	}
	began := time.Now()
	stopFirst()
	awaitLead(t, second)
	if took := time.Since(began); took > leaseDuration/2 {
		t.Errorf("handing over took %s", took)
	}
}

// A leader that cannot renew its Lease ends before another may take it, and does
// not come back as if nothing had happened.
func TestALostLeaseEndsTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := fake.NewClientset()
		var down atomic.Bool
		cluster.PrependReactor("*", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			return down.Load(), nil, errors.New("the API server is down")
		})
		p := &parts{client: cluster, settings: settings{namespace: "ambit-system", podName: "first"}, logger: slog.New(slog.DiscardHandler)}
		leads := make(chan struct{})
		ended := make(chan error, 1)
		go func() {
			ended <- p.leadWith(t.Context(), func(term context.Context) error {
				close(leads)
				<-term.Done()
				return nil
			})
		}()
		<-leads
		down.Store(true)
		began := time.Now()
		if err := <-ended; !errors.Is(err, errLeaseLost) {
			t.Errorf("it ended with %v", err)
		}
		if took := time.Since(began); took >= leaseDuration {
			t.Errorf("it led for %s without a Lease", took)
		}
	})
}

func TestLeaseNamesItsHolder(t *testing.T) {
	cluster := fake.NewClientset()
	leads, stop := replica(t, cluster, "controller-abc")
	awaitLead(t, leads)
	if got := holder(t, cluster); got != "controller-abc" {
		t.Errorf("held by %q", got)
	}
	stop()
	if got := holder(t, cluster); got != "" {
		t.Errorf("after the end held by %q", got)
	}
}

// Who holds the Lease is the API server's word.
func TestWhoHoldsTheLease(t *testing.T) {
	cluster := fake.NewClientset()
	first := &parts{client: cluster, settings: settings{namespace: "ambit-system", podName: "first"}}
	holds := func(when string, want bool) {
		t.Helper()
		if err := first.holdsLease(t.Context()); (err == nil) != want || err != nil && when != "there is none" && !errors.Is(err, errLeaseLost) {
			t.Errorf("%s: %v", when, err)
		}
	}
	holds("there is none", false)
	leads, stop := replica(t, cluster, "first")
	awaitLead(t, leads)
	holds("it is its own", true)
	stop()
	holds("it let go of it", false)
	leads, _ = replica(t, cluster, "second")
	awaitLead(t, leads)
	holds("it is another's", false)
}

func awaitLead(t *testing.T, leads <-chan struct{}) {
	t.Helper()
	select {
	case <-leads:
	case <-time.After(leaseDuration):
		t.Fatal("nobody leads")
	}
}

func holder(t *testing.T, cluster *fake.Clientset) string {
	t.Helper()
	lease, err := cluster.CoordinationV1().Leases("ambit-system").Get(t.Context(), leaseName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}
