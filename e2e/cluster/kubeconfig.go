package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
)

// kubeconfig with everything inside, so that it can be moved about alone.
const kubeconfigFormat = `apiVersion: v1
kind: Config
clusters:
- name: ambit
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %s
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: ambit
  context: {cluster: ambit, user: %[3]s}
current-context: ambit
`

// newKubeconfig is for the holder of the certificate called name.
func newKubeconfig(pki, server, name string) ([]byte, error) {
	var encoded [3]string
	for i, file := range []string{"ca.crt", name + ".crt", name + ".key"} {
		content, err := os.ReadFile(filepath.Join(pki, file))
		if err != nil {
			return nil, fmt.Errorf("read credentials of %s: %w", name, err)
		}
		encoded[i] = base64.StdEncoding.EncodeToString(content)
	}
	return fmt.Appendf(nil, kubeconfigFormat, server, encoded[0], name, encoded[1], encoded[2]), nil
}

// replaceFile writes a file so that a reader sees the old or the new content.
func replaceFile(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make folder of %s: %w", filepath.Base(path), err)
	}
	staging := path + ".new"
	if err := os.WriteFile(staging, content, mode); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(staging, path); err != nil {
		return fmt.Errorf("put %s in place: %w", filepath.Base(path), err)
	}
	return nil
}
