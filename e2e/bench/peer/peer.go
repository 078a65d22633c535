// Package peer finds the programs that Ambit is measured beside, and tries whether they
// do what all are measured with.
//
//	peer.go   where the programs are
//	probe.go  that a proxy is what it is said to be: TLS 1.3, the suite, client certificates
//
// What they are configured with is for the benchmarks to say.
package peer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// Absent is the error of what this machine cannot run, and why.
type Absent struct{ Why string }

func (a *Absent) Error() string { return a.Why }

// Program is one that was found.
type Program struct{ Path, Version string }

// HAProxy finds HAProxy.
func HAProxy() (Program, error) { return find("haproxy", "AMBIT_BENCH_HAPROXY", "-v") }

const nginxVariable = "AMBIT_BENCH_NGINX"

// Nginx finds nginx.
func Nginx() (Program, error) { return find("nginx", nginxVariable, "-v") }

// streamModule is where Debian has nginx's stream module.
const streamModule = "/usr/lib/nginx/modules/ngx_stream_module.so"

// NginxStream is the path of the module that nginx has to load for TCP; empty if it is
// built in.
func NginxStream() string {
	if _, err := os.Stat(streamModule); err != nil || os.Getenv(nginxVariable) != "" {
		return ""
	}
	return streamModule
}

// Envoy finds Envoy.
func Envoy() (Program, error) { return find(envoyCommand(), "AMBIT_BENCH_ENVOY", "--version") }

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

// find returns a program, which a variable of the environment may name.
func find(name, variable, versionFlag string) (Program, error) {
	if named := os.Getenv(variable); named != "" {
		name = named
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return Program{}, &Absent{Why: fmt.Sprintf("%v (make setup-bench installs it; %s names one)", err, variable)}
	}
	out, err := exec.Command(path, versionFlag).CombinedOutput()
	if err != nil {
		return Program{}, &Absent{Why: fmt.Sprintf("%s %s: %v", path, versionFlag, err)}
	}
	return Program{path, versionNumber.FindString(string(out))}, nil
}
