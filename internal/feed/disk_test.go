package feed_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/feed"
	"github.com/ambit-mesh/ambit/internal/workload"
)

func at(path string) func(*feed.Config) {
	return func(config *feed.Config) { config.SnapshotPath = path }
}

// saved runs a client until its state is on disk, and returns the file and the
// state's version.
func saved(t *testing.T, changes ...func(*feed.Config)) (path, version string) {
	t.Helper()
	c := newController(t)
	path = filepath.Join(t.TempDir(), "snapshot.pb")
	f := run(t, c, append(changes, at(path))...)
	s := c.accept()
	s.serve(meshConfig, pod("cart", "10.244.1.7"), pod("web", "10.244.1.8"))
	s.push(workload.AddressType, nil, pod("bad", "10.244.1.9", unreadable))
	f.stop()
	c.stop()
	return path, f.store.Snapshot().Version()
}

// A client that starts while the controller is down works with what it knew,
// and says that it is alone. When the controller is back, it is told of it.
func TestColdStartWithoutTheController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, version := saved(t)

		c := newController(t)
		c.stop()
		f := run(t, c, at(path))
		if !isSynced(f) {
			t.Fatal("not synced")
		}
		if f.Connected() {
			t.Error("connected to nobody")
		}
		if got := f.store.Snapshot().Version(); got != version {
			t.Errorf("version is %s, want %s", got, version)
		}
		if len(f.store.Snapshot().Rejected()) != 1 {
			t.Error("what could not be read is forgotten: its address would pass for a stranger's")
		}

		c.start()
		first := c.accept().first()
		if got := first[workload.AddressType].GetInitialResourceVersions(); len(got) != 2 {
			t.Errorf("told of %v, want what was on disk", got)
		}
	})
}

// The disk remembers both what is in force and what came after it and could not
// be read, through any number of restarts; and forgets the latter once it could.
func TestRejectedResourceOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "snapshot.pb")
		c := newController(t)
		f := run(t, c, at(path))
		s := c.accept()
		s.serve(meshConfig, pod("cart", "10.244.1.7"))
		s.push(workload.AddressType, nil, pod("cart", "10.244.1.8", unreadable))
		f.stop()

		for range 2 {
			c.stop()
			f = run(t, c, at(path))
			synctest.Wait()
			if w, ok := f.store.Snapshot().WorkloadByAddr(netip.MustParseAddr("10.244.1.7")); !ok || w.UID != uid("cart") {
				t.Fatal("what was in force is gone")
			}
			if _, ok := f.store.Snapshot().RejectedByAddr(netip.MustParseAddr("10.244.1.8")); !ok {
				t.Fatal("what could not be read is forgotten")
			}
			c.start()
			first := c.accept().serve()
			if got := first[workload.AddressType].GetInitialResourceVersions(); len(got) != 1 {
				t.Errorf("told of %v, want the version in force", got)
			}
			f.stop()
		}

		f = run(t, c, at(path))
		s = c.accept()
		s.serve(pod("cart", "10.244.1.8"))
		f.stop()
		c.stop()
		f = run(t, c, at(path))
		synctest.Wait()
		if got := f.store.Snapshot().Rejected(); len(got) != 0 {
			t.Errorf("still remembered: %v", got)
		}
	})
}

// A burst of changes costs one write, a second after it began.
func TestSavingIsDebounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		path := filepath.Join(t.TempDir(), "snapshot.pb")
		run(t, c, at(path))
		s := c.accept()
		s.first()
		s.push(workload.AddressType, nil, pod("cart", "10.244.1.7"))
		time.Sleep(10 * time.Second)
		if _, err := os.Stat(path); err == nil {
			t.Error("an incomplete state was saved")
		}
		s.pushNothing(workload.TrustBundleType, workload.RevocationListType, workload.NamespaceType, workload.AuthorizationType, workload.EgressPolicyType)
		s.push(workload.ConfigType, nil, meshConfig)
		time.Sleep(900 * time.Millisecond)
		if _, err := os.Stat(path); err == nil {
			t.Error("saved at once")
		}
		time.Sleep(200 * time.Millisecond)
		synctest.Wait()
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal("not saved after a second")
		}

		for range 5 {
			s.push(workload.AddressType, nil, pod("cart", "10.244.1.7", withdrawn))
			s.push(workload.AddressType, nil, pod("cart", "10.244.1.7"))
			time.Sleep(100 * time.Millisecond)
		}
		if now, err := os.Stat(path); err != nil || !os.SameFile(now, before) {
			t.Error("saved again within a second")
		}
		time.Sleep(700 * time.Millisecond)
		synctest.Wait()
		second, err := os.Stat(path)
		if err != nil || os.SameFile(second, before) {
			t.Error("not saved again after a second")
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if now, err := os.Stat(path); err != nil || !os.SameFile(now, second) {
			t.Error("saved a third time, though nothing changed")
		}
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(entries) != 1 {
			t.Errorf("the folder holds %v, want the one file", entries)
		}
	})
}

// What is on disk is not always what was written.
func TestCorruptFileIsSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, _ := saved(t)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		flipped := append([]byte(nil), whole...)
		flipped[len(flipped)-1] ^= 1
		for name, content := range map[string][]byte{
			"empty": {}, "junk": []byte("junk"), "cut": whole[:len(whole)/2], "flipped bit": flipped, "longer": append(flipped, 1),
		} {
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			c := newController(t)
			c.stop()
			f := run(t, c, at(path))
			if isSynced(f) {
				t.Errorf("%s: taken for the state", name)
			}
			if _, err := os.Stat(path); err == nil {
				t.Errorf("%s: still in place", name)
			}
			if aside, err := os.ReadFile(path + ".corrupt"); err != nil || string(aside) != string(content) {
				t.Errorf("%s: not set aside", name)
			}
			// The feed works as without a file.
			c.start()
			c.accept().serve(meshConfig)
			if !isSynced(f) {
				t.Errorf("%s: not synced by the controller", name)
			}
			f.stop()
		}
	})
}

// A partial state must not pass for the whole mesh.
func TestFileOfTheOtherMode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, _ := saved(t)
		c := newController(t)
		c.stop()
		f := run(t, c, at(path), func(config *feed.Config) { config.OnDemand = true })
		if isSynced(f) {
			t.Error("loaded")
		}
		if _, err := os.Stat(path); err != nil {
			t.Error("not left in place")
		}
	})
}

// A folder that cannot be written to costs the file, not the feed. It is
// reported, and the file is written as soon as it can be, with nothing new to say.
func TestUnwritableFolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newController(t)
		path := filepath.Join(t.TempDir(), "missing", "snapshot.pb")
		f := run(t, c, at(path))
		s := c.accept()
		s.serve(meshConfig)
		time.Sleep(5 * time.Second)
		s.push(workload.AddressType, nil, pod("cart", "10.244.1.7"))
		if !isSynced(f) {
			t.Error("not synced")
		}
		time.Sleep(10 * time.Second)
		if p := f.Problems(); len(p) != 1 || !strings.HasPrefix(p[0], "ConfigurationNotSaved: ") || !strings.Contains(p[0], path) {
			t.Errorf("problems %q", p)
		}
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if p := f.Problems(); len(p) > 0 {
			t.Errorf("problems %q", p)
		}
		version := f.store.Snapshot().Version()
		f.stop()
		c.stop()
		f = run(t, c, at(path))
		synctest.Wait()
		if got := f.store.Snapshot().Version(); got != version {
			t.Errorf("the file gives version %s, want %s", got, version)
		}
	})
}

// What a killed process was writing goes.
func TestHalfWrittenFilesAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, version := saved(t)
		if err := os.WriteFile(path+".123.tmp", []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		c := newController(t)
		c.stop()
		f := run(t, c, at(path))
		synctest.Wait()
		if got := f.store.Snapshot().Version(); got != version {
			t.Errorf("version is %s, want %s", got, version)
		}
		if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
			t.Errorf("left: %v, %v", entries, err)
		}
	})
}

// A save writes what changed to what the file has: the rest is not in memory.
func TestSavesAddUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "snapshot.pb")
		c := newController(t)
		f := run(t, c, at(path))
		s := c.accept()
		s.serve(meshConfig, pod("stays", "10.244.1.7"), pod("changes", "10.244.1.8"), pod("goes", "10.244.1.9"))
		time.Sleep(2 * time.Second)
		s.push(workload.AddressType, []string{uid("goes")}, pod("changes", "10.244.2.8"))
		time.Sleep(2 * time.Second)
		s.push(workload.AddressType, nil, pod("comes", "10.244.1.10"))
		time.Sleep(2 * time.Second)
		version := f.store.Snapshot().Version()
		f.stop()
		c.stop()

		f = run(t, c, at(path))
		synctest.Wait()
		if got := f.store.Snapshot().Version(); got != version {
			t.Errorf("the file gives version %s, want %s: %d addresses", got, version, f.store.Snapshot().Count(workload.AddressType))
		}
	})
}

// Where the file is gone that changes belong to, nothing incomplete takes its
// place: the controller is asked for everything, and the next file is whole.
func TestLostFileIsMadeAnew(t *testing.T) {
	for name, lose := range map[string]func(path string) error{
		"removed": os.Remove,
		"damaged": func(path string) error { return os.Truncate(path, 100) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "snapshot.pb")
				c := newController(t)
				f := run(t, c, at(path))
				s := c.accept()
				s.serve(meshConfig, pod("cart", "10.244.1.7"), pod("gone", "10.244.1.8"))
				time.Sleep(2 * time.Second)
				if err := lose(path); err != nil {
					t.Fatal(err)
				}
				s.push(workload.AddressType, nil, pod("web", "10.244.1.9"))
				time.Sleep(1100 * time.Millisecond)

				s = c.accept()
				told := s.first()[workload.AddressType].GetInitialResourceVersions()
				for _, pod := range []string{"cart", "gone", "web"} {
					if version := told[uid(pod)]; version != "lost" {
						t.Errorf("claims to have version %q of %s", version, pod)
					}
				}
				s.push(workload.ConfigType, nil, meshConfig)
				s.pushNothing(workload.TrustBundleType, workload.RevocationListType, workload.NamespaceType, workload.AuthorizationType, workload.EgressPolicyType)
				time.Sleep(2 * time.Second)
				if content, err := os.ReadFile(path); err == nil && len(content) != 100 {
					t.Error("an incomplete state was saved")
				}
				if s.push(workload.AddressType, []string{uid("gone")}, pod("cart", "10.244.1.7"), pod("web", "10.244.1.9")); !isSynced(f) {
					t.Error("not synced")
				}
				time.Sleep(time.Minute)
				version := f.store.Snapshot().Version()
				f.stop()
				c.stop()

				f = run(t, c, at(path))
				synctest.Wait()
				if got := f.store.Snapshot().Version(); got != version {
					t.Errorf("the file gives version %s, want %s", got, version)
				}
			})
		})
	}
}
