// Package deploy holds the manifests that put Ambit into a cluster, and
// renders them.
//
// The manifests are plain YAML but for the few values of [Values]. The
// CustomResourceDefinitions are generated from api/v1alpha1. Applying them is
// the command-line tool's job.
package deploy

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"text/template"
)

//go:embed manifests
var files embed.FS

// Values are what differs between clusters.
type Values struct {
	// Repository and Tag make up the images' names: REPOSITORY/ztunnel:TAG.
	Repository, Tag string
	// ClusterID and TrustDomain name the cluster and its identities.
	ClusterID, TrustDomain string
	// CNIBinDir and CNIConfDir are the nodes' CNI folders.
	CNIBinDir, CNIConfDir string
	// ExcludedNamespaces are never held by the CNI gate, besides ambit-system
	// and kube-system.
	ExcludedNamespaces []string
	// OnDemand makes ztunnel ask for workloads as it meets them.
	OnDemand bool
	// LogFormat is text or json, LogLevel debug, info, warn or error.
	LogFormat, LogLevel string
}

// Defaults are the values for a cluster with the usual folders.
func Defaults() Values {
	return Values{
		Repository: "ambit.mesh", Tag: "dev",
		ClusterID: "Kubernetes", TrustDomain: "cluster.local",
		CNIBinDir: "/opt/cni/bin", CNIConfDir: "/etc/cni/net.d",
		LogFormat: "text", LogLevel: "info",
	}
}

// Image returns the full name of one of the images.
func (v Values) Image(name string) string {
	return v.Repository + "/" + name + ":" + v.Tag
}

// Part is a set of manifests that is applied together.
type Part string

const (
	// Foundation is the namespace and the CustomResourceDefinitions.
	Foundation Part = "foundation"
	// Controller and everything it needs.
	Controller Part = "controller"
	// Ztunnel and everything it needs.
	Ztunnel Part = "ztunnel"
	// CleanNode is the DaemonSet that cleans nodes on removal.
	CleanNode Part = "clean-node"
)

var parts = map[Part][]string{
	Foundation: {"manifests/namespace.yaml", "manifests/crds/*.yaml"},
	Controller: {"manifests/controller.yaml"},
	Ztunnel:    {"manifests/ztunnel.yaml"},
	CleanNode:  {"manifests/clean-node.yaml"},
}

// Render returns the manifests of the given parts as one YAML stream.
func Render(values Values, wanted ...Part) ([]byte, error) {
	var out bytes.Buffer
	for _, part := range wanted {
		patterns, ok := parts[part]
		if !ok {
			return nil, fmt.Errorf("render manifests: no part %q", part)
		}
		for _, pattern := range patterns {
			if err := renderGlob(&out, values, pattern); err != nil {
				return nil, fmt.Errorf("render manifests of %s: %w", part, err)
			}
		}
	}
	return out.Bytes(), nil
}

func renderGlob(out *bytes.Buffer, values Values, pattern string) error {
	names, err := fs.Glob(files, pattern)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("no file matches %s", pattern)
	}
	for _, name := range names {
		source, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		out.WriteString("---\n")
		if strings.HasPrefix(name, "manifests/crds/") {
			out.Write(bytes.TrimPrefix(source, []byte("---\n")))
			continue
		}
		if err := renderTemplate(out, values, name, string(source)); err != nil {
			return err
		}
	}
	return nil
}

func renderTemplate(out *bytes.Buffer, values Values, name, source string) error {
	t, err := template.New(name).Option("missingkey=error").Funcs(template.FuncMap{
		"quote": strconv.Quote,
		"join":  func(list []string) string { return strings.Join(list, ",") },
	}).ParseFS(files, "manifests/*.tmpl")
	if err != nil {
		return err
	}
	if t, err = t.New(name).Parse(source); err != nil {
		return err
	}
	return t.Execute(out, values)
}
