package variant

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"

	"github.com/ambit-mesh/ambit/e2e/bench/l4/process"
)

// tunedBuffer is the tune.bufsize with which HAProxy is at its best in bulk.
const tunedBuffer = 131072

// HAProxy is two of them in TCP mode; buffer is tune.bufsize, 0 for the default.
func HAProxy(buffer int) func(context.Context, Site) (Path, error) {
	return func(ctx context.Context, site Site) (Path, error) {
		binary, version, err := find("haproxy", "AMBIT_BENCH_HAPROXY", "-v")
		if err != nil {
			return nil, err
		}
		s := site.settings()
		s.Buffer = buffer
		return startPeer(ctx, site, s, "haproxy-client.cfg", "haproxy-server.cfg", version, probeTLS(), func(config string) []string {
			return []string{binary, "-db", "-f", config} // -db: in the foreground
		})
	}
}

// HAProxyTuned is HAProxy with large buffers.
func HAProxyTuned() func(context.Context, Site) (Path, error) { return HAProxy(tunedBuffer) }

// streamModule is where Debian has nginx's stream module.
const streamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

// Nginx is two of them with the stream module.
func Nginx(ctx context.Context, site Site) (Path, error) {
	binary, version, err := find("nginx", "AMBIT_BENCH_NGINX", "-v")
	if err != nil {
		return nil, err
	}
	s := site.settings()
	if _, err := os.Stat(streamModule); err == nil && os.Getenv("AMBIT_BENCH_NGINX") == "" {
		s.StreamModule = streamModule
	}
	return startPeer(ctx, site, s, "nginx-client.conf", "nginx-server.conf", version, probeTLS(), func(config string) []string {
		return []string{binary, "-c", config, "-p", site.Dir, "-e", "stderr"}
	})
}

// Envoy is two of them that speak HBONE.
func Envoy(ctx context.Context, site Site) (Path, error) {
	binary, version, err := find(envoyCommand(), "AMBIT_BENCH_ENVOY", "--version")
	if err != nil {
		return nil, err
	}
	return startPeer(ctx, site, site.settings(), "envoy-client.yaml", "envoy-server.yaml", version, probeTLS("h2"), func(config string) []string {
		return []string{binary, "-c", config, "--concurrency", fmt.Sprint(workers), "--disable-hot-restart", "--log-level", "warning"}
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

// envoyCommand is where make setup-bench puts Envoy, if it is there.
func envoyCommand() string {
	cache := os.Getenv("AMBIT_CACHE")
	if home, err := os.UserHomeDir(); cache == "" && err == nil {
		cache = filepath.Join(home, ".cache", "ambit")
	}
	found, err := filepath.Glob(filepath.Join(cache, "envoy", "lib", "python3*", "site-packages", "envoy", "_bin", "envoy"))
	if err != nil || len(found) == 0 {
		return "envoy"
	}
	return found[0]
}

var versionNumber = regexp.MustCompile(`\d+\.\d+\.\d+[-+~.\w]*`)

// find returns the path of a peer's program, which a variable of the environment
// may name, and its version.
func find(name, variable, versionFlag string) (path, version string, err error) {
	if named := os.Getenv(variable); named != "" {
		name = named
	}
	path, err = exec.LookPath(name)
	if err != nil {
		return "", "", &Absent{Why: fmt.Sprintf("%v (make setup-bench installs it; %s names one)", err, variable)}
	}
	out, err := exec.Command(path, versionFlag).CombinedOutput()
	if err != nil {
		return "", "", &Absent{Why: fmt.Sprintf("%s %s: %v", path, versionFlag, err)}
	}
	return path, versionNumber.FindString(string(out)), nil
}
