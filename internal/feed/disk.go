package feed

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/ambit-mesh/ambit/internal/workload"
)

// The file: a line that says what it is, the SHA-256 of the rest, and two
// delimited DeltaDiscoveryResponses per type: what was in force, then what
// could not be read, to be tried again on top of it.
const (
	magicFull    = "ambit configuration 1 full\n"
	magicPartial = "ambit configuration 1 partial\n"
)

const (
	// saveAfter lets a burst of changes cost one write.
	saveAfter = time.Second
	// saveShare bounds what saving a large mesh costs: at most a twentieth of the time.
	saveShare = 20
)

// errOtherMode says that a file was written with another OnDemand.
var errOtherMode = errors.New("written with another on-demand setting")

func (c *Client) magic() string {
	if c.config.OnDemand {
		return magicPartial
	}
	return magicFull
}

// load makes the state on disk the current one. A file that cannot be read is
// set aside: the controller will send everything anew.
func (c *Client) load() {
	path := c.config.SnapshotPath
	deltas, err := readFile(path, c.magic())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case errors.Is(err, errOtherMode):
		c.logger.Info("configuration on disk ignored", "path", path, "reason", err)
		return
	case err != nil:
		aside := path + ".corrupt"
		c.logger.Error("configuration on disk unreadable", "path", path, "error", err, "set_aside", aside)
		if err := os.Rename(path, aside); err != nil {
			c.logger.Error("set configuration aside", "path", path, "error", err)
		}
		return
	}
	for _, delta := range deltas {
		c.apply(delta)
	}
	c.settle()
	c.logger.Info("configuration loaded from disk", "path", path, "version", c.config.Store.Snapshot().Version())
}

// save writes the state whenever it has changed, once more when ctx has ended.
// An incomplete state is never written.
func (c *Client) save(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-c.synced:
	}
	wait := saveAfter
	for {
		select {
		case <-c.resources.dirty:
		case <-ctx.Done():
			c.saveIfDirty()
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		c.resources.clean() // What came while waiting is in the same write.
		wait = max(saveAfter, saveShare*c.saveNow())
	}
}

func (c *Client) saveIfDirty() {
	if c.resources.clean() {
		c.saveNow()
	}
}

// saveNow returns how long it took.
func (c *Client) saveNow() time.Duration {
	started := time.Now()
	if err := writeFile(c.config.SnapshotPath, c.magic(), c.resources); err != nil {
		c.logger.Error("save configuration", "path", c.config.SnapshotPath, "error", err)
	}
	return time.Since(started)
}

// writeFile replaces the file at path, so that there is always a whole one,
// also after a power cut.
func writeFile(path, magic string, rs *resources) error {
	var body bytes.Buffer
	for _, t := range workload.Types {
		good, rejected := rs.list(t)
		for _, list := range [][]workload.Resource{good, rejected} {
			if _, err := protodelim.MarshalTo(&body, toResponse(t, list)); err != nil {
				return fmt.Errorf("encode %s: %w", t, err)
			}
		}
	}
	sum := sha256.Sum256(body.Bytes())

	dir := filepath.Dir(path)
	file, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	w := bufio.NewWriter(file)
	w.WriteString(magic)
	w.Write(sum[:])
	w.Write(body.Bytes())
	err = errors.Join(w.Flush(), file.Sync(), file.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func toResponse(typeURL string, list []workload.Resource) *discovery.DeltaDiscoveryResponse {
	response := &discovery.DeltaDiscoveryResponse{TypeUrl: typeURL}
	for _, r := range list {
		response.Resources = append(response.Resources, &discovery.Resource{
			Name: r.Name, Version: r.Version, Aliases: r.Aliases, Resource: r.Body,
		})
	}
	return response
}

// syncDir makes a rename in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func readFile(path, magic string) ([]workload.Delta, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return decodeFile(content, magic)
}

func decodeFile(content []byte, magic string) ([]workload.Delta, error) {
	body, ok := bytes.CutPrefix(content, []byte(magic))
	if !ok {
		for _, other := range []string{magicFull, magicPartial} {
			if bytes.HasPrefix(content, []byte(other)) {
				return nil, errOtherMode
			}
		}
		return nil, errors.New("not a configuration file")
	}
	if len(body) < sha256.Size {
		return nil, io.ErrUnexpectedEOF
	}
	sum, body := body[:sha256.Size], body[sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(sum, got[:]) {
		return nil, errors.New("checksum differs")
	}
	var deltas []workload.Delta
	for r := bytes.NewReader(body); r.Len() > 0; {
		var message discovery.DeltaDiscoveryResponse
		if err := (protodelim.UnmarshalOptions{MaxSize: -1}).UnmarshalFrom(r, &message); err != nil {
			return nil, fmt.Errorf("decode: %w", err)
		}
		deltas = append(deltas, toDelta(&message))
	}
	return deltas, nil
}
