package variant

import (
	"context"
	"fmt"

	"github.com/ambit-mesh/ambit/e2e/bench/peer"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
)

// tunedBuffer is the tune.bufsize with which HAProxy is at its best in bulk.
const tunedBuffer = 131072

// HAProxy is two of them in TCP mode; buffer is tune.bufsize, 0 for the default.
func HAProxy(buffer int) func(context.Context, Site) (Path, error) {
	return func(ctx context.Context, site Site) (Path, error) {
		binary, err := peer.HAProxy()
		if err != nil {
			return nil, err
		}
		s := site.settings()
		s.Buffer = buffer
		return startPeer(ctx, site, s, "haproxy-client.cfg", "haproxy-server.cfg", binary.Version, probeTLS(), func(config string) []string {
			return []string{binary.Path, "-db", "-f", config} // -db: in the foreground
		})
	}
}

// HAProxyTuned is HAProxy with large buffers.
func HAProxyTuned() func(context.Context, Site) (Path, error) { return HAProxy(tunedBuffer) }

// Nginx is two of them with the stream module.
func Nginx(ctx context.Context, site Site) (Path, error) {
	binary, err := peer.Nginx()
	if err != nil {
		return nil, err
	}
	s := site.settings()
	s.StreamModule = peer.NginxStream()
	return startPeer(ctx, site, s, "nginx-client.conf", "nginx-server.conf", binary.Version, probeTLS(), func(config string) []string {
		return []string{binary.Path, "-c", config, "-p", site.Dir, "-e", "stderr"}
	})
}

// Envoy is two of them that speak HBONE.
func Envoy(ctx context.Context, site Site) (Path, error) {
	binary, err := peer.Envoy()
	if err != nil {
		return nil, err
	}
	return startPeer(ctx, site, site.settings(), "envoy-client.yaml", "envoy-server.yaml", binary.Version, probeTLS("h2"), func(config string) []string {
		return []string{binary.Path, "-c", config, "--concurrency", fmt.Sprint(workers), "--disable-hot-restart", "--log-level", "warning"}
	})
}

func startPeer(ctx context.Context, site Site, s settings, client, server, version string, probe probe, args func(config string) []string) (Path, error) {
	clientConfig, err := s.write(client)
	if err != nil {
		return nil, err
	}
	serverConfig, err := s.write(server)
	if err != nil {
		return nil, err
	}
	return startPair(ctx, site, process.Program{Args: args(clientConfig)}, process.Program{Args: args(serverConfig)}, version, probe)
}
