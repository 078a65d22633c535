package pki

import (
	"context"
	"log/slog"

	"github.com/ambit-mesh/ambit/internal/certs"
	"github.com/ambit-mesh/ambit/internal/spiffe"
)

// Keep has an identity's certificate ready, of the authority below dir, and keeps it
// for as long as the process lives.
func Keep(dir string, id spiffe.ID) (*certs.Store, error) {
	authority, err := Load(dir)
	if err != nil {
		return nil, err
	}
	store := certs.New(certs.Config{Fetch: authority.Fetch, Bundle: authority.Bundle, Logger: slog.New(slog.DiscardHandler)})
	store.Want(id)
	go store.Run(context.Background())
	if _, err := store.Get(context.Background(), id); err != nil {
		return nil, err
	}
	return store, nil
}
