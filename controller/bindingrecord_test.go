package main

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	k8stesting "k8s.io/client-go/testing"
)

// seal signs by repeating everything.
type seal struct{}

func (seal) SignRecord(name string, text []byte) ([]byte, error) {
	return append([]byte(name+" "), text...), nil
}

func (s seal) CheckRecord(name string, text, signature []byte) error {
	if want, _ := s.SignRecord(name, text); !bytes.Equal(signature, want) {
		return errors.New("not signed")
	}
	return nil
}

func newBindingsObject(client coreclient.ConfigMapInterface) *bindingsObject {
	return &bindingsObject{client: client, signer: seal{}, logger: slog.New(slog.DiscardHandler)}
}

// What a leader wrote is what the next one reads; what somebody else wrote is nothing.
func TestTheRecordOfBindingsIsTheLeadersWord(t *testing.T) {
	cluster := fake.NewClientset()
	client := cluster.CoreV1().ConfigMaps("ambit-system")
	first, second := newBindingsObject(client), newBindingsObject(client)
	reads := func(o *bindingsObject, want string) {
		t.Helper()
		if got, err := o.read(t.Context()); err != nil || got != want {
			t.Errorf("read %q, %v; want %q", got, err, want)
		}
	}
	reads(first, "")
	for _, text := range []string{"one", "two"} {
		if err := first.write(t.Context(), text); err != nil {
			t.Fatal(err)
		}
		reads(second, text)
	}
	object, err := client.Get(t.Context(), bindingsConfigMap, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	object.Data[bindingsKey] = "forged"
	if _, err := client.Update(t.Context(), object, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	reads(second, "")
	if err := second.write(t.Context(), "three"); err != nil {
		t.Fatal(err)
	}
	reads(newBindingsObject(client), "three")

	// The server refuses what is written over another's word: that is no success, and the next attempt is made on that word.
	conflicts := 1
	cluster.PrependReactor("update", "configmaps", func(action k8stesting.Action) (bool, runtime.Object, error) {
		if conflicts--; conflicts < 0 {
			return false, nil, nil
		}
		return true, nil, apierrors.NewConflict(action.GetResource().GroupResource(), bindingsConfigMap, errors.New("changed"))
	})
	if err := second.write(t.Context(), "another's"); err == nil {
		t.Error("a conflict is a success")
	}
	if err := second.write(t.Context(), "on it"); err != nil {
		t.Fatal(err)
	}
	reads(first, "on it")

	// Somebody deletes it: the attempt after the one that finds that out makes it anew.
	if err := client.Delete(t.Context(), bindingsConfigMap, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := second.write(t.Context(), "four"); err == nil {
		t.Error("written over what is not there")
	}
	if err := second.write(t.Context(), "four"); err != nil {
		t.Fatal(err)
	}
	reads(first, "four")
}
