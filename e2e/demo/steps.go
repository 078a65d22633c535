package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/e2e/apps"
	"github.com/ambit-mesh/ambit/e2e/testbed"
)

const namespace = "shop"

// secret is what a customer would rather not have read.
const secret = "card-number=4111-1111-1111-1111"

// demo carries what one step leaves for a later one.
type demo struct {
	bed *testbed.Bed
	// before are the shopper's connections before the label.
	before stats
	// restarts of all containers before the label.
	restarts string
}

type stats struct {
	LongLived map[string]line `json:"longLived"`
	Fresh     map[string]line `json:"fresh"`
}

type line struct {
	Exchanges, Failures int
	LastError, Local    string
}

func (d *demo) say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

// kubectl runs and shows a command.
func (d *demo) kubectl(ctx context.Context, args ...string) (string, error) {
	fmt.Println("   $ kubectl", strings.Join(args, " "))
	return d.bed.Kubectl(ctx, args...)
}

func (d *demo) install(ctx context.Context) error {
	fmt.Println("   $ ambit install")
	cmd := d.bed.Command(ctx, "ambit", "install")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

func (d *demo) deploy(ctx context.Context) error {
	// A shop of an earlier run may be enrolled: begin as a stranger would.
	if _, err := d.bed.Kubectl(ctx, "delete", "namespace", namespace, "--ignore-not-found", "--wait"); err != nil {
		return err
	}
	if _, err := d.kubectl(ctx, "create", "namespace", namespace); err != nil {
		return err
	}
	if err := d.bed.Apply(ctx, namespace, apps.Shop); err != nil {
		return err
	}
	if _, err := d.kubectl(ctx, "-n", namespace, "wait", "--for=condition=Available", "deployment", "--all", "--timeout=90s"); err != nil {
		return err
	}
	pods, err := d.kubectl(ctx, "-n", namespace, "get", "pods", "-o", "wide")
	fmt.Print(indent(pods))
	if err != nil {
		return err
	}
	return testbed.Eventually(ctx, time.Minute, func(ctx context.Context) error {
		s, err := d.stats(ctx)
		if err == nil && (len(s.LongLived) < 4 || len(s.Fresh) < 2) {
			err = fmt.Errorf("the shopper has not reached every service yet: %+v", s)
		}
		return err
	})
}

func (d *demo) stats(ctx context.Context) (stats, error) {
	var s stats
	out, err := d.bed.Tool(ctx, namespace, "deploy/shopper", "get", "http://127.0.0.1:8081/stats")
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal([]byte(out), &s)
}

// askSecret has the shopper fetch the secret on a connection of its own.
func (d *demo) askSecret(ctx context.Context) error {
	out, err := d.bed.Tool(ctx, namespace, "deploy/shopper", "get", "http://web:8080/secret")
	if err == nil && !strings.Contains(out, secret) {
		err = fmt.Errorf("the web shop answered %q", out)
	}
	return err
}

const podsOnly = "net 10.244.0.0/16 or net fd00:10:244::/48"

func (d *demo) readable(ctx context.Context) error {
	all, err := testbed.Capture(ctx, podsOnly, func() error { return d.askSecret(ctx) })
	if err != nil {
		return err
	}
	for _, p := range all {
		if strings.Contains(p.Text, secret) {
			d.say("captured between nodes: %s > %s", p.Source, p.Destination)
			d.say("    %s", secret)
			return nil
		}
	}
	return fmt.Errorf("%d packets were captured, and none has the secret: the capture would prove nothing", len(all))
}

func (d *demo) label(ctx context.Context) (err error) {
	if d.before, err = d.stats(ctx); err != nil {
		return err
	}
	if d.restarts, err = d.restartCounts(ctx); err != nil {
		return err
	}
	start := time.Now()
	if _, err := d.kubectl(ctx, "label", "namespace", namespace, "ambit.mesh/dataplane-mode=ambient"); err != nil {
		return err
	}
	err = testbed.Eventually(ctx, 30*time.Second, func(ctx context.Context) error {
		out, err := d.bed.Kubectl(ctx, "-n", namespace, "get", "workloads.ambit.mesh", "-o", "jsonpath={range .items[*]}{.metadata.name}={.status.state}/{.status.protocol} {end}")
		if err != nil {
			return err
		}
		states := strings.Fields(out)
		if len(states) < 5 {
			return fmt.Errorf("%d workloads of 5 so far: %v", len(states), states)
		}
		for _, state := range states {
			if !strings.HasSuffix(state, "=Captured/HBONE") {
				return fmt.Errorf("%v", states)
			}
		}
		return nil
	})
	d.say("all pods captured, and reached by tunnel, after %s", time.Since(start).Round(10*time.Millisecond))
	return err
}

func (d *demo) alive(ctx context.Context) error {
	time.Sleep(2 * time.Second) // long enough for a broken connection to show
	now, err := d.stats(ctx)
	if err != nil {
		return err
	}
	for name, before := range d.before.LongLived {
		after := now.LongLived[name]
		d.say("%-10s %4d exchanges before the label, %4d now, %d failures, our end %s", name, before.Exchanges, after.Exchanges, after.Failures, after.Local)
		if after.Failures > 0 || after.Local != before.Local || after.Exchanges <= before.Exchanges {
			return fmt.Errorf("the long-lived %s connection did not live on: before %+v, after %+v", name, before, after)
		}
	}
	for name, after := range now.Fresh {
		d.say("new %-6s %4d since the start, %d failures", name, after.Exchanges, after.Failures)
		if after.Failures > 0 {
			return fmt.Errorf("new %s connections failed: %+v", name, after)
		}
	}
	return nil
}

func (d *demo) unreadable(ctx context.Context) error {
	all, err := testbed.Capture(ctx, podsOnly, func() error {
		for range 5 {
			if err := d.askSecret(ctx); err != nil {
				return err
			}
		}
		time.Sleep(time.Second) // the shopper's own new connections too
		return nil
	})
	if err != nil {
		return err
	}
	tunnelled := 0
	for _, p := range all {
		if strings.Contains(p.Text, secret) {
			return fmt.Errorf("readable between nodes: %s > %s: %s", p.Source, p.Destination, p.Text)
		}
		switch port := p.Port(); {
		case p.Opens() && port != "15008" && !infrastructure[port]:
			return fmt.Errorf("a new connection went around the tunnel: %s > %s", p.Source, p.Destination)
		case port == "15008":
			tunnelled++
		}
	}
	if tunnelled == 0 {
		return fmt.Errorf("%d packets were captured, none of them to port 15008", len(all))
	}
	d.say("%d packets captured between nodes, %d of them to port 15008; none has the card number, and no connection was opened to another port", len(all), tunnelled)
	return nil
}

// infrastructure are ports between nodes that are not the shop's: DNS, the
// controller, health and readiness of what is not enrolled.
var infrastructure = map[string]bool{"53": true, "6443": true, "15012": true, "8181": true, "15021": true}

func (d *demo) workloads(ctx context.Context) error {
	out, err := d.kubectl(ctx, "get", "workloads.ambit.mesh", "-A", "-o", "wide")
	fmt.Print(indent(out))
	if err == nil && !strings.Contains(out, "spiffe://cluster.local/ns/shop/sa/web") {
		err = fmt.Errorf("the identity of web is not shown")
	}
	return err
}

func indent(text string) string {
	return "   " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n   ") + "\n"
}
