package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// api is a client of the API server, as small as this program needs it.
type api struct {
	server string
	client *http.Client
}

// requestPatience bounds one request: an API server that starts may accept a
// connection long before it answers.
const requestPatience = 10 * time.Second

// newAPI authenticates with the certificate called name in folder.
func newAPI(server, folder, name string) (*api, error) {
	ca, err := os.ReadFile(filepath.Join(folder, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read authority: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	pair, err := tls.LoadX509KeyPair(filepath.Join(folder, name+".crt"), filepath.Join(folder, name+".key"))
	if err != nil {
		return nil, fmt.Errorf("read credentials of %s: %w", name, err)
	}
	return &api{server: server, client: &http.Client{
		Timeout: requestPatience,
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
			// A connection to a control plane that was cut would hang.
			DisableKeepAlives: true,
		},
	}}, nil
}

// do sends one request and decodes the answer into result, if there is one.
func (a *api) do(ctx context.Context, method, path, contentType string, body []byte, result any) error {
	request, err := http.NewRequestWithContext(ctx, method, a.server+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := a.client.Do(request)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("%s %s: read answer: %w", method, path, err)
	}
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, answer)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(answer, result); err != nil {
		return fmt.Errorf("%s %s: decode answer: %w", method, path, err)
	}
	return nil
}

// ready says whether the API server serves, with its start-up work done.
func (a *api) ready() bool {
	return a.do(context.Background(), http.MethodGet, "/readyz", "", nil, nil) == nil
}

// node is what this program reads of a Node object.
type node struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Status struct {
		NodeInfo struct {
			BootID         string `json:"bootID"`
			KubeletVersion string `json:"kubeletVersion"`
		} `json:"nodeInfo"`
		Conditions []struct {
			Type   string `json:"type"`
			Status string `json:"status"`
		} `json:"conditions"`
	} `json:"status"`
}

func (n node) ready() bool {
	for _, condition := range n.Status.Conditions {
		if condition.Type == "Ready" {
			return condition.Status == "True"
		}
	}
	return false
}

func (a *api) nodes(ctx context.Context) ([]node, error) {
	var list struct {
		Items []node `json:"items"`
	}
	err := a.do(ctx, http.MethodGet, "/api/v1/nodes", "", nil, &list)
	return list.Items, err
}

// setPodCIDRs tells Kubernetes which addresses the node's CNI gives out.
func (a *api) setPodCIDRs(ctx context.Context, m machine) error {
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{
		"podCIDR":  m.podCIDR4().String(),
		"podCIDRs": []string{m.podCIDR4().String(), m.podCIDR6().String()},
	}})
	if err != nil {
		return fmt.Errorf("encode pod ranges: %w", err)
	}
	return a.do(ctx, http.MethodPatch, "/api/v1/nodes/"+m.name, "application/strategic-merge-patch+json", patch, nil)
}
