// Package statefile keeps what one process of the node writes for the next: a
// file is read as it was written, or not at all.
//
// The file begins with a line that names its kind, the version of its content
// and the SHA-256 of both and of the content, which follows:
//
//	ambit pods 1 sha256:0123...def
//	{...}
//
// Invariants: a reader sees an old file or a new one, whole, also after a power
// cut and on a full disk; one that is torn, altered, of another version, of
// another owner or open to others is refused with the reason, never read in part.
package statefile

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/atomicfile"
)

// mode of every state file: what a node knows of its pods is not for its users.
const mode = 0o600

// Kind of state file.
type Kind struct {
	// Name is one word.
	Name string
	// Version of the content: a reader knows one.
	Version int
	// MaxBytes bounds the content.
	MaxBytes int64
}

// Damaged is why a file that is there is not read.
type Damaged struct {
	Path   string
	Reason string
}

func (d *Damaged) Error() string { return fmt.Sprintf("%s: %s", d.Path, d.Reason) }

// head returns the file's first line without its checksum.
func (k Kind) head() string { return fmt.Sprintf("ambit %s %d ", k.Name, k.Version) }

func (k Kind) sum(content []byte) string {
	hash := sha256.New()
	hash.Write([]byte(k.head()))
	hash.Write(content)
	return "sha256:" + hex.EncodeToString(hash.Sum(nil)) + "\n"
}

// Encode returns a file's bytes.
func (k Kind) Encode(content []byte) []byte {
	return append([]byte(k.head()+k.sum(content)), content...)
}

// Decode returns the content of a file's bytes.
func (k Kind) Decode(file []byte) ([]byte, error) {
	head := k.head()
	if !bytes.HasPrefix(file, []byte(head)) {
		line, _, _ := bytes.Cut(file[:min(len(file), 80)], []byte("\n"))
		return nil, fmt.Errorf("it begins with %q, not with %q: written by another version, or not by ztunnel", line, head)
	}
	rest := file[len(head):]
	sum, content, found := bytes.Cut(rest, []byte("\n"))
	if !found {
		return nil, errors.New("it ends in its first line")
	}
	if k.sum(content) != string(sum)+"\n" {
		return nil, errors.New("its checksum differs: it is torn, or was altered")
	}
	return content, nil
}

// Write replaces the file at path.
func (k Kind) Write(path string, content []byte) error {
	return atomicfile.Write(path, k.Encode(content), mode)
}

// Read returns the content of the file at path: an error wrapping
// fs.ErrNotExist where there is none, a [Damaged] where it may not be used.
func (k Kind) Read(path string) ([]byte, error) {
	// A name that leads elsewhere, or to something that blocks, is no file of ours.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, &Damaged{Path: path, Reason: "it is a symbolic link"}
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := Check(file); err != nil {
		return nil, &Damaged{Path: path, Reason: err.Error()}
	}
	most := k.MaxBytes + int64(len(k.Encode(nil)))
	all, err := io.ReadAll(io.LimitReader(file, most+1))
	if err != nil {
		return nil, &Damaged{Path: path, Reason: err.Error()}
	}
	if int64(len(all)) > most {
		return nil, &Damaged{Path: path, Reason: fmt.Sprintf("it is longer than the %d bytes that ztunnel ever writes", most)}
	}
	content, err := k.Decode(all)
	if err != nil {
		return nil, &Damaged{Path: path, Reason: err.Error()}
	}
	return content, nil
}

// Check tells why an open file may not be what this process's own kind wrote.
func Check(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("it is no regular file but %s", info.Mode())
	}
	if open := info.Mode().Perm() &^ mode; open != 0 {
		return fmt.Errorf("its mode is %#o, not %#o: others may have read or written it", info.Mode().Perm(), mode)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d, not to %d", stat.Uid, os.Geteuid())
	}
	return nil
}
