package variant

import (
	"context"
	"errors"
	"fmt"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/load"
	"github.com/ambit-mesh/ambit/e2e/bench/peer"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
)

// HAProxy is one of them, with TLS on both sides if secure.
func HAProxy(secure bool) func(context.Context, Site) (Proxy, error) {
	return func(ctx context.Context, site Site) (Proxy, error) {
		binary, err := peer.HAProxy()
		if err != nil {
			return nil, err
		}
		s := site.settings(secure)
		for _, name := range []string{"haproxy-paths.map", "haproxy.cfg"} {
			if _, err := s.write(name); err != nil {
				return nil, err
			}
		}
		return startPeer(ctx, site, s, "haproxy.cfg", binary.Version, func(config string) []string {
			return []string{binary.Path, "-db", "-f", config} // -db: in the foreground
		})
	}
}

// Nginx is one of them, with TLS on both sides if secure.
func Nginx(secure bool) func(context.Context, Site) (Proxy, error) {
	return func(ctx context.Context, site Site) (Proxy, error) {
		binary, err := peer.Nginx()
		if err != nil {
			return nil, err
		}
		return startPeer(ctx, site, site.settings(secure), "nginx.conf", binary.Version, func(config string) []string {
			return []string{binary.Path, "-c", config, "-p", site.Dir, "-e", "stderr"}
		})
	}
}

// Envoy is one of them, with TLS on both sides if secure.
func Envoy(secure bool) func(context.Context, Site) (Proxy, error) {
	return func(ctx context.Context, site Site) (Proxy, error) {
		binary, err := peer.Envoy()
		if err != nil {
			return nil, err
		}
		return startPeer(ctx, site, site.settings(secure), "envoy.yaml", binary.Version, func(config string) []string {
			return []string{binary.Path, "-c", config, "--concurrency", fmt.Sprint(workers), "--disable-hot-restart", "--log-level", "warning"}
		})
	}
}

// startPeer runs a peer, and tries whether its TLS is what all are measured with.
func startPeer(ctx context.Context, site Site, s settings, config, version string, args func(config string) []string) (_ Proxy, err error) {
	path, err := s.write(config)
	if err != nil {
		return nil, err
	}
	p := &single{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Stop())
		}
	}()
	target := load.Target{Carrier: load.Plain, Address: s.Listen}
	if s.Secure {
		target = load.Target{Carrier: load.TLS, Address: s.Listen, PKI: site.PKI}
	}
	if err := p.start(site, process.Program{Args: args(path)}, target, version); err != nil {
		return nil, err
	}
	if s.Secure {
		if err := (peer.Probe{From: site.Client.NetNS, To: s.Listen, PKI: site.PKI, Scratch: site.Dir, Ask: load.Ask}).Try(ctx, p.process.Alive); err != nil {
			return nil, fmt.Errorf("probe: %w", err)
		}
	}
	return p, nil
}
