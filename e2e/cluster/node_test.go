package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestImageIsImportedOnceUntilItChanges(t *testing.T) {
	folder := t.TempDir()
	tar, record := filepath.Join(folder, "app.tar"), filepath.Join(folder, "records/app.tar")
	imports, fail := 0, false
	importNow := func() (bool, error) {
		return importImage(t.Context(), tar, record, func(context.Context, string) error {
			imports++
			if fail {
				return errors.New("no space")
			}
			return nil
		})
	}
	write := func(content string) {
		if err := os.WriteFile(tar, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	fail = true
	if _, err := importNow(); err == nil {
		t.Error("a refused import is no error")
	}
	fail = false
	for range 2 { // a failed import leaves no record, a good one does
		if _, err := importNow(); err != nil {
			t.Fatal(err)
		}
	}
	if imports != 2 {
		t.Errorf("%d imports, want the refused one and one more", imports)
	}
	write("two")
	if imported, err := importNow(); err != nil || !imported {
		t.Errorf("changed tar: imported %v, %v", imported, err)
	}
}
