package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/e2e/testbed"
)

// accessLog looks on the server's node for the line of a connection that the
// shopper makes now.
func (d *demo) accessLog(ctx context.Context) error {
	if err := d.askSecret(ctx); err != nil {
		return err
	}
	pod, err := d.bed.Kubectl(ctx, "-n", "ambit-system", "get", "pods", "-l", "app=ztunnel", "--field-selector", "spec.nodeName=n1", "-o", "jsonpath={.items[0].metadata.name}")
	if err != nil {
		return err
	}
	const client, server = "spiffe://cluster.local/ns/shop/sa/shopper", "spiffe://cluster.local/ns/shop/sa/web"
	return testbed.Eventually(ctx, 10*time.Second, func(ctx context.Context) error {
		log, err := d.bed.Kubectl(ctx, "-n", "ambit-system", "logs", pod, "--tail=500")
		if err != nil {
			return err
		}
		for line := range strings.Lines(log) {
			if strings.Contains(line, client) && strings.Contains(line, server) && strings.Contains(line, "inbound") {
				d.say("ztunnel on n1: %s", strings.TrimSpace(line))
				return nil
			}
		}
		return fmt.Errorf("no line of ztunnel on n1 has both identities")
	})
}

func (d *demo) clientAddress(ctx context.Context) error {
	out, err := d.bed.Tool(ctx, namespace, "deploy/shopper", "get", "http://web:8080/whoami")
	if err != nil {
		return err
	}
	var who struct{ Client, Served string }
	if err := json.Unmarshal([]byte(out), &who); err != nil {
		return err
	}
	ips, err := d.bed.Kubectl(ctx, "-n", namespace, "get", "pods", "-l", "app=shopper", "-o", "jsonpath={.items[0].status.podIPs[*].ip}")
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(who.Client)
	if err != nil {
		return err
	}
	d.say("web on %s says that its client is %s; the shopper's pod has %s", who.Served, who.Client, ips)
	for _, ip := range strings.Fields(ips) {
		if net.ParseIP(ip).Equal(net.ParseIP(host)) {
			return nil
		}
	}
	return fmt.Errorf("the server saw %s, the client's pod has %s", host, ips)
}

func (d *demo) restartCounts(ctx context.Context) (string, error) {
	return d.bed.Kubectl(ctx, "-n", namespace, "get", "pods", "-o", "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount} {.status.conditions[?(@.type=='Ready')].status} {.status.conditions[?(@.type=='Ready')].lastTransitionTime}{'\\n'}{end}")
}

func (d *demo) probes(ctx context.Context) error {
	now, err := d.restartCounts(ctx)
	if err != nil {
		return err
	}
	fmt.Print(indent("POD RESTARTS READY SINCE\n" + now))
	if now != d.restarts {
		return fmt.Errorf("restarts or readiness changed since before the label, when they were\n%s", d.restarts)
	}
	return nil
}
