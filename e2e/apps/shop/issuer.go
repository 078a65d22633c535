package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	// portIssuerTLS has the keys over TLS, by the certificate in CERTIFICATE, with its key in
	// PRIVATE_KEY, or else by one of no authority.
	portIssuerTLS = ":8443"
	maxKeys       = 64 << 10
)

// serveIssuer publishes the keys of somebody who signs tokens: /keys at :8080 and
// :8443. They are those of KEYS, until others are PUT there.
func serveIssuer(ctx context.Context) error {
	var keys atomic.Value
	keys.Store([]byte(env("KEYS", `{"keys":[]}`)))
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", healthz)
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.Write(keys.Load().([]byte))
	})
	mux.HandleFunc("PUT /keys", func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxKeys))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		keys.Store(text)
	})
	certificate, err := certificateOf(env("CERTIFICATE", ""), env("PRIVATE_KEY", ""))
	if err != nil {
		return err
	}
	overTLS := &http.Server{Addr: portIssuerTLS, Handler: mux, ReadHeaderTimeout: dialTimeout, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}}
	defer overTLS.Close()
	go overTLS.ListenAndServeTLS("", "")
	return serveHTTP(ctx, env("LISTEN", ":8080"), mux)
}

// certificateOf is the one in PEM, or one for the pod's name that signs itself.
func certificateOf(certificate, key string) (tls.Certificate, error) {
	if certificate == "" {
		return selfSigned()
	}
	return tls.X509KeyPair([]byte(certificate), []byte(key))
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{env("POD_NAME", "issuer")}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
