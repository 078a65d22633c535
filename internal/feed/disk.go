package feed

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/internal/statefile"
	"github.com/ambit-mesh/ambit/internal/workload"
)

// The file: a line that says what it is, the SHA-256 of the rest, and delimited
// DeltaDiscoveryResponses: first what was in force, then what could not be read,
// to be tried again on top of it.
const (
	magicFull    = "ambit configuration 2 full\n"
	magicPartial = "ambit configuration 2 partial\n"
	magicAny     = "ambit configuration "

	// unreadNonce marks the latter.
	unreadNonce = "unread"
	// batchLength bounds how much of a large mesh is in memory at once.
	batchLength = 256
)

// maxFileBytes is many times a mesh of a million pods: what is larger is not
// even summed up.
const maxFileBytes = 4 << 30

const (
	// saveRetry is how soon a file that could not be written is tried again.
	saveRetry = 5 * time.Second
	// saveAfter lets a burst of changes cost one write.
	saveAfter = time.Second
	// saveShare bounds what saving a large mesh costs: at most a twentieth of the time.
	saveShare = 20
)

var (
	// errOther says that a file is one of ours, and not for us.
	errOther = errors.New("written with another on-demand setting, or by another version")
	errFile  = errors.New("not a configuration file")
	errSum   = errors.New("checksum differs")
	errHuge  = errors.New("larger than any configuration")
	// errBase says that the file is not there that changes were to be applied to.
	errBase = errors.New("the state on disk is lost")
)

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
	c.sweep()
	err := readFile(path, c.magic(), func(message []byte) error {
		response := &discovery.DeltaDiscoveryResponse{}
		if err := proto.Unmarshal(message, response); err != nil {
			return err
		}
		delta := toDelta(response)
		c.resources.load(delta, response.GetNonce() == unreadNonce, c.applyToStore(delta))
		return nil
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case errors.Is(err, errOther):
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
		if c.saveProblem() != nil {
			wait = max(wait, saveRetry)
		}
	}
}

func (c *Client) saveIfDirty() {
	if c.resources.clean() {
		c.saveNow()
	}
}

// manyChanges leave behind so much memory that it is given back to the system
// at once, and not with the next collections, which may be minutes away.
const manyChanges = 5000

// saveNow returns how long it took.
func (c *Client) saveNow() time.Duration {
	started := time.Now()
	if !c.resources.whole() {
		return 0 // dirty again when it is
	}
	path := c.config.SnapshotPath
	lacks, rejected := c.resources.take()
	err := writeFile(path, c.magic(), lacks, rejected)
	switch {
	case errors.Is(err, errBase):
		c.logger.Error("configuration on disk is gone: the controller is asked for all of it", "path", path, "error", err)
		c.resources.lost()
		c.anew()
	case err != nil:
		c.resources.putBack(lacks)
	}
	c.noteSave(err)
	took := time.Since(started)
	// What was learnt from nothing came with all that starting takes.
	if err == nil && (!lacks.based || len(lacks.upserts[workload.AddressType]) >= manyChanges) {
		lacks = changes{}
		debug.FreeOSMemory()
	}
	return took
}

// noteSave makes it known whether the state on disk is the current one.
func (c *Client) noteSave(err error) {
	var problem error
	if err != nil {
		problem = fmt.Errorf("save configuration to %s: %w", c.config.SnapshotPath, err)
	}
	before := c.unsaved.Swap(&problem)
	switch {
	case problem != nil && (before == nil || *before == nil):
		c.logger.Error("configuration on disk is old", "error", problem)
	case problem == nil && before != nil && *before != nil:
		c.logger.Info("configuration on disk is current again")
	}
}

func (c *Client) saveProblem() error {
	if problem := c.unsaved.Load(); problem != nil {
		return *problem
	}
	return nil
}

// Problems of the state on disk, coded.
func (c *Client) Problems() []string {
	if err := c.saveProblem(); err != nil {
		return []string{"ConfigurationNotSaved: " + err.Error() + "; a restart without the controller would begin with what was saved last"}
	}
	return nil
}

// sweep removes what a process that was killed was writing.
func (c *Client) sweep() {
	leftovers, err := filepath.Glob(c.config.SnapshotPath + temporary)
	if err != nil {
		return // a path that is no pattern was never written to
	}
	for _, path := range leftovers {
		if err := os.Remove(path); err != nil {
			c.logger.Warn("half-written configuration not removed", "path", path, "error", err)
		}
	}
}

// temporary ends the name of a file that is being written.
const temporary = ".*.tmp"

// writeFile replaces the file at path by one with the changes, so that there is
// always a whole one, also after a power cut.
func writeFile(path, magic string, lacks changes, rejected map[string][]workload.Resource) error {
	dir := filepath.Dir(path)
	file, err := os.CreateTemp(dir, filepath.Base(path)+temporary)
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	sum := sha256.New()
	w := bufio.NewWriter(io.MultiWriter(file, sum))
	_, err = file.Write(append([]byte(magic), make([]byte, sha256.Size)...))
	if err == nil {
		err = writeBody(w, path, magic, lacks, rejected)
	}
	if err = errors.Join(err, w.Flush()); err == nil {
		_, err = file.WriteAt(sum.Sum(nil), int64(len(magic)))
	}
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func writeBody(w io.Writer, path, magic string, lacks changes, rejected map[string][]workload.Resource) error {
	if lacks.based {
		if err := copyUnchanged(w, path, magic, lacks); err != nil {
			if _, failed := errors.AsType[*writeError](err); failed {
				return err // the new file's fault, not the present one's
			}
			return fmt.Errorf("%w: %w", errBase, err)
		}
	}
	for _, t := range workload.WaypointTypes {
		var upserts []workload.Resource
		for _, r := range lacks.upserts[t] {
			if r != nil {
				upserts = append(upserts, *r)
			}
		}
		if err := writeBatches(w, t, "", upserts); err != nil {
			return err
		}
	}
	for _, t := range workload.WaypointTypes {
		if err := writeBatches(w, t, unreadNonce, rejected[t]); err != nil {
			return err
		}
	}
	return nil
}

func writeBatches(w io.Writer, typeURL, nonce string, list []workload.Resource) error {
	for batch := range slices.Chunk(list, batchLength) {
		response := toResponse(typeURL, batch)
		response.Nonce = nonce
		if _, err := protodelim.MarshalTo(w, response); err != nil {
			return fmt.Errorf("encode %s: %w", typeURL, err)
		}
	}
	return nil
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

// readFile reads a whole file, or nothing of it: the encoded responses, each
// valid until each returns.
func readFile(path, magic string, each func(message []byte) error) error {
	// A name that leads elsewhere, or to something that blocks, is no file of ours.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := statefile.Check(file); err != nil {
		return fmt.Errorf("%w: %w", errFile, err)
	}
	if info, err := file.Stat(); err != nil || info.Size() > maxFileBytes {
		return errors.Join(errHuge, err)
	}
	return decode(file, magic, each)
}

// decode checks everything before it hands out anything.
func decode(file io.ReadSeeker, magic string, each func(message []byte) error) error {
	head := make([]byte, len(magic)+sha256.Size)
	n, err := io.ReadFull(file, head)
	switch {
	case bytes.HasPrefix(head[:n], []byte(magic)) && err != nil:
		return err
	case bytes.HasPrefix(head[:n], []byte(magic)):
	case bytes.HasPrefix(head[:n], []byte(magicAny)) && !bytes.HasPrefix([]byte(magic), head[:n]):
		return errOther
	default:
		return errFile
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return err
	}
	if !bytes.Equal(sum.Sum(nil), head[len(magic):]) {
		return errSum
	}
	if _, err := file.Seek(int64(len(head)), io.SeekStart); err != nil {
		return err
	}
	var message []byte
	for r := bufio.NewReader(file); ; {
		size, err := binary.ReadUvarint(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && size > maxResponseBytes {
			err = fmt.Errorf("a response of %d bytes", size)
		}
		if err == nil {
			message = slices.Grow(message[:0], int(size))[:size]
			_, err = io.ReadFull(r, message)
		}
		if err == nil {
			err = each(message)
		}
		if err != nil {
			return fmt.Errorf("decode: %w", err)
		}
	}
}
