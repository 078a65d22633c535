package variant

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/ambit-mesh/ambit/e2e/bench/l7/load"
	"github.com/ambit-mesh/ambit/e2e/bench/peer"
	"github.com/ambit-mesh/ambit/e2e/bench/pki"
	"github.com/ambit-mesh/ambit/e2e/bench/process"
	"github.com/ambit-mesh/ambit/e2e/bench/simulated"
	"github.com/ambit-mesh/ambit/internal/daemon"
)

const (
	readinessPort = 15021
	readyTimeout  = 20 * time.Second
)

// waypoint is the shipped one, and its controller.
type waypoint struct {
	single
	stopController func()
}

// Waypoint is the shipped waypoint, as its Deployment runs it.
func Waypoint(ctx context.Context, site Site) (_ Proxy, err error) {
	w := &waypoint{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Stop())
		}
	}()
	c, stop, err := startController(site)
	if err != nil {
		return nil, err
	}
	w.stopController = stop
	root, token := pki.FilesOf(site.PKI, "ca").Certificate, filepath.Join(site.Dir, "token")
	if err := os.WriteFile(token, []byte("token"), 0o600); err != nil {
		return nil, err
	}
	program := process.Program{Args: []string{simulated.Binary("waypoint")}, Env: []string{
		"NODE_NAME=way", "POD_NAME=" + podName, "POD_NAMESPACE=" + waypointID.Namespace, "POD_IP=" + site.Proxy.IPv4.String(), "GATEWAY_NAME=" + gateway,
		"CONTROLLER_ADDRESS=https://" + site.at(controllerPort).String(), "CLUSTER_ID=" + clusterID, "TRUST_DOMAIN=" + waypointID.TrustDomain,
		"TERMINATION_GRACE_PERIOD_SECONDS=0", "LOG_FORMAT=text", "LOG_LEVEL=info", "TOKEN_PATH=" + token, "ROOT_CERT_PATH=" + root,
	}}
	target := load.Target{Carrier: load.Tunnel, Address: site.at(tunnelPort), Authority: front, Identity: waypointID.String(), PKI: site.PKI}
	if err := w.start(site, program, target, daemon.Version); err != nil {
		return nil, err
	}
	if err := w.ready(ctx, site, c); err != nil {
		return nil, err
	}
	return w, peer.Probe{From: site.Client.NetNS, To: target.Address, PKI: site.PKI, Scratch: site.Dir, Protocols: []string{"h2"}}.Try(ctx, w.process.Alive)
}

// ready waits until the waypoint says that it is.
func (w *waypoint) ready(ctx context.Context, site Site, c *controller) error {
	const pause = 20 * time.Millisecond
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = site.Proxy.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}}
	said := "nothing"
	for deadline := time.Now().Add(readyTimeout); ; time.Sleep(pause) {
		response, err := client.Get(fmt.Sprintf("http://%s/healthz/ready", site.at(readinessPort)))
		if err == nil {
			text, _ := io.ReadAll(response.Body)
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			said = string(text)
		}
		select {
		case err := <-c.rejected:
			return fmt.Errorf("the waypoint does not accept: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if err := w.process.Alive(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the waypoint is not ready after %s: %s", readyTimeout, said)
		}
	}
}

func (w *waypoint) Stop() error {
	err := w.single.Stop()
	if w.stopController != nil {
		w.stopController()
	}
	return err
}

// single is a proxy that is one program, whose standard output is its log.
type single struct {
	process *process.Process
	target  load.Target
	version string
	log     string
}

// start runs the program as a copy of its own: memory that it shared with another
// variant's would be counted by halves.
func (p *single) start(site Site, program process.Program, target load.Target, version string) (err error) {
	if program.Args[0], err = copyTo(site.Dir, program.Args[0]); err != nil {
		return err
	}
	program.Log = filepath.Join(site.Dir, "proxy.log")
	p.target, p.version, p.log = target, version, program.Log
	p.process, err = process.Start(process.In(site.Proxy.NetNS), program)
	return err
}

func copyTo(dir, program string) (string, error) {
	to := filepath.Join(dir, "program")
	if _, err := os.Stat(to); err == nil {
		return to, nil // of an earlier start
	}
	from, err := os.Open(program)
	if err != nil {
		return "", err
	}
	defer from.Close()
	file, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(file, from)
	return to, errors.Join(err, file.Close())
}

func (p *single) Target() load.Target { return p.target }
func (p *single) Processes() []int    { return p.process.Tree() }
func (p *single) Version() string     { return p.version }

// Trim is Proxy's. Programs append to their logs.
func (p *single) Trim() (int64, error) {
	written, err := os.Stat(p.log)
	if err != nil {
		return 0, err
	}
	return written.Size(), os.Truncate(p.log, 0)
}

func (p *single) Stop() error {
	if p.process == nil {
		return nil
	}
	return p.process.Stop()
}
