package cniinstall

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle lets a writer that takes several calls finish: between them a file
	// is empty or half.
	settle = 10 * time.Millisecond
	// rewatch is how soon a watch that could not be had, or was lost, is tried again.
	rewatch = 10 * time.Second
)

// errLost: a watched folder is another one by now, or none.
var errLost = errors.New("the watched folder was replaced")

// follow sends on changed after whatever happens in the folders, until ctx
// ends. Where the system has no watch left to give, the reader's own polling
// has to do.
func follow(ctx context.Context, folders []string, changed chan<- struct{}, logger *slog.Logger) {
	for failed := false; ; {
		err := followOnce(ctx, folders, changed)
		if ctx.Err() != nil {
			return
		}
		if !failed {
			logger.Warn("CNI folders not watched: they are looked at every "+pollInterval.String(), "error", err)
		}
		failed = !errors.Is(err, errLost)
		select {
		case <-ctx.Done():
			return
		case <-time.After(rewatch):
		}
	}
}

// followOnce holds one watch for as long as it is good.
func followOnce(ctx context.Context, folders []string, changed chan<- struct{}) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch CNI folders: %w", err)
	}
	defer watcher.Close()
	for _, folder := range folders {
		if err := watcher.Add(folder); err != nil {
			return fmt.Errorf("watch %s: %w", folder, err)
		}
	}
	signal(changed) // what happened before the watch stood
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, ok := <-watcher.Events:
			if !ok {
				return errLost
			}
			signal(changed)
			for _, folder := range folders {
				if event.Name == folder && event.Has(fsnotify.Remove|fsnotify.Rename) {
					return errLost
				}
			}
		case err, ok := <-watcher.Errors:
			if !ok {
				return errLost
			}
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watch CNI folders: %w", err)
			}
			signal(changed) // some of many changes were not told
		}
	}
}

func signal(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default:
	}
}
