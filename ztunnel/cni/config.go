package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ambit-mesh/ambit/ztunnel/cniproto"
)

// config is the chain entry, as the container runtime passes it.
type config struct {
	cniproto.ChainEntry
	// PrevResult is what the plugins before this one did; passed on as it is.
	PrevResult json.RawMessage `json:"prevResult"`

	level slog.Level
}

func parseConfig(stdin []byte) (*config, error) {
	conf := &config{}
	if err := json.Unmarshal(stdin, conf); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, malformed("field %q: a %s where a %s belongs", wrong.Field, wrong.Value, wrong.Type)
		}
		return nil, malformed("%v", err)
	}
	if conf.Socket == "" {
		conf.Socket = cniproto.DefaultSocket
	}
	if conf.EnrolmentFile == "" {
		conf.EnrolmentFile = cniproto.DefaultEnrolmentFile
	}
	for field, path := range map[string]string{"socket": conf.Socket, "enrolmentFile": conf.EnrolmentFile} {
		if !filepath.IsAbs(path) {
			return nil, malformed("field %q: %q is not an absolute path", field, path)
		}
	}
	if conf.LogLevel != "" {
		if err := conf.level.UnmarshalText([]byte(conf.LogLevel)); err != nil {
			return nil, malformed("field %q: %q is none of debug, info, warn, error", "logLevel", conf.LogLevel)
		}
	}
	return conf, nil
}

func malformed(format string, args ...any) *types.Error {
	return types.NewError(types.ErrInvalidNetworkConfig, cniproto.PluginType+": malformed configuration: "+fmt.Sprintf(format, args...), "")
}

// result is what the gate reads of the previous plugins' result; the fields are
// the same in all versions since 0.3.0.
type result struct {
	Interfaces []struct {
		Sandbox string `json:"sandbox"`
	} `json:"interfaces"`
	IPs []struct {
		Address   string `json:"address"`
		Interface *int   `json:"interface"`
	} `json:"ips"`
}

func (c *config) previous() (result, error) {
	if len(c.PrevResult) == 0 || string(c.PrevResult) == "null" {
		return result{}, types.NewError(types.ErrInvalidNetworkConfig,
			cniproto.PluginType+": no prevResult: the plugin belongs at the end of a chain, after those that make the pod's network", "")
	}
	var previous result
	if err := json.Unmarshal(c.PrevResult, &previous); err != nil {
		return result{}, malformed("field %q: %v", "prevResult", err)
	}
	return previous, nil
}

// addresses returns the pod's: those that are on an interface in its sandbox.
func (r result) addresses() []string {
	var addresses []string
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i].Sandbox == "" {
			continue
		}
		if prefix, err := netip.ParsePrefix(ip.Address); err == nil {
			addresses = append(addresses, prefix.Addr().String())
		}
	}
	return addresses
}

// podArgs are the arguments that Kubernetes' container runtimes pass.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE types.UnmarshallableString
	K8S_POD_NAME      types.UnmarshallableString
	K8S_POD_UID       types.UnmarshallableString
}

// parsePod returns which pod a call is about. A container that no Kubernetes
// started is none: it cannot be in the mesh, and the gate leaves it alone.
func parsePod(args *skel.CmdArgs) (sandbox cniproto.AddRequest, isPod bool, err error) {
	pod := podArgs{CommonArgs: types.CommonArgs{IgnoreUnknown: true}}
	if err := types.LoadArgs(args.Args, &pod); err != nil {
		return sandbox, false, types.NewError(types.ErrInvalidEnvironmentVariables, cniproto.PluginType+": CNI_ARGS: "+err.Error(), "")
	}
	if pod.K8S_POD_NAMESPACE == "" && pod.K8S_POD_NAME == "" {
		return sandbox, false, nil
	}
	if pod.K8S_POD_NAMESPACE == "" || pod.K8S_POD_NAME == "" {
		return sandbox, false, types.NewError(types.ErrInvalidEnvironmentVariables,
			cniproto.PluginType+": CNI_ARGS names a pod by half: K8S_POD_NAMESPACE and K8S_POD_NAME are needed both", "")
	}
	return cniproto.AddRequest{
		Namespace:   string(pod.K8S_POD_NAMESPACE),
		Name:        string(pod.K8S_POD_NAME),
		UID:         string(pod.K8S_POD_UID),
		ContainerID: args.ContainerID,
		NetNS:       args.Netns,
	}, true, nil
}
