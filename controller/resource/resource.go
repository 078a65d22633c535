// Package resource is what the controller publishes: protobuf messages by type
// and name, each with a version that is a hash of its content.
//
// The same content has the same version in every replica and after every
// restart, so that a proxy which reconnects says what it holds and is sent only
// what differs.
//
// What the messages mean is translate's job; who gets them, and when, is push's.
package resource

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// The types that are published, by their type URLs. The first two are the
// field's, the others ours.
const (
	Address       = "type.googleapis.com/istio.workload.Address"
	Authorization = "type.googleapis.com/istio.security.Authorization"
	TrustBundle   = "type.googleapis.com/ambit.mesh.TrustBundle"
	// RevocationList: certificates that are accepted no longer.
	RevocationList = "type.googleapis.com/ambit.mesh.RevocationList"
	Config         = "type.googleapis.com/ambit.mesh.Config"
	Namespace      = "type.googleapis.com/ambit.mesh.Namespace"
	EgressPolicy   = "type.googleapis.com/ambit.mesh.EgressPolicy"
	Binding        = "type.googleapis.com/ambit.mesh.Binding"
	RequestPolicy  = "type.googleapis.com/ambit.mesh.RequestPolicy"

	RequestAuthentication = "type.googleapis.com/ambit.mesh.RequestAuthentication"
)

// versionBytes of the content hash are kept: enough that two contents of one
// resource never meet by chance, short enough to be read.
const versionBytes = 8

// Resource is one published message. It is immutable.
type Resource struct {
	// Name is the primary key, unique in its type.
	Name string
	// Version is a hash of the content and the aliases.
	Version string
	// Aliases are further keys under which a proxy may ask for it.
	Aliases []string
	// SentWith names resources of the same type: a proxy that asks for one of
	// them gets this one too (the endpoints of a service).
	SentWith []string
	// Node is sent this resource even if it asks for nothing (its own pods).
	Node string

	Message proto.Message
	// Body is Message, serialized once for all proxies.
	Body *anypb.Any
}

// Relations of a resource to others and to its readers: see [Resource].
type Relations struct {
	Aliases  []string
	SentWith []string
	Node     string
}

// New serializes a message into a resource. It fails on what protobuf cannot
// express, such as a string that is not UTF-8.
func New(name string, message proto.Message, relations Relations) (*Resource, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("serialize %s: %w", name, err)
	}
	hash := sha256.New()
	hash.Write(body)
	for _, alias := range relations.Aliases {
		hash.Write([]byte{0})
		hash.Write([]byte(alias))
	}
	return &Resource{
		Name:     name,
		Version:  hex.EncodeToString(hash.Sum(nil)[:versionBytes]),
		Aliases:  relations.Aliases,
		SentWith: relations.SentWith,
		Node:     relations.Node,
		Message:  message,
		Body: &anypb.Any{
			TypeUrl: "type.googleapis.com/" + string(message.ProtoReflect().Descriptor().FullName()),
			Value:   body,
		},
	}, nil
}

// Resources are resources by type URL, then by name.
type Resources map[string]map[string]*Resource

// Add puts a resource under its type. Of two with the same name the later wins.
func (rs Resources) Add(r *Resource) {
	byName := rs[r.Body.TypeUrl]
	if byName == nil {
		byName = make(map[string]*Resource)
		rs[r.Body.TypeUrl] = byName
	}
	byName[r.Name] = r
}
