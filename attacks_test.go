package ambit

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rows of docs/security/attacks.md that have to be there.
var rows = []string{
	"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19", "20",
	"22", "23", "24", "25", "26", "27", "28", "29", "30", "31", "34", "35", "36", "37", "39", "40", "42", "43", "44",
}

var testName = regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)[A-Za-z0-9]+)(?:/([^`]+))?`")

// TestAttacksAreTried: every test that the table of attacks names exists, and
// every row that has to be there names one.
func TestAttacksAreTried(t *testing.T) {
	content, err := os.ReadFile("docs/security/attacks.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]string{} // all test files of a folder
	tried := map[string]int{}
	for line := range strings.Lines(string(content)) {
		row := strings.Trim(strings.SplitN(line+"||", "|", 3)[1], " ")
		for _, name := range testName.FindAllStringSubmatch(line, -1) {
			dir, function, of := name[1], name[2], name[3]
			if _, read := tests[dir]; !read {
				tests[dir] = testFiles(t, dir)
			}
			if !strings.Contains(tests[dir], "\nfunc "+function+"(") {
				t.Errorf("row %s: there is no %s in %s", row, function, dir)
			}
			if of != "" && !strings.Contains(tests[dir], `"`+of+`"`) {
				t.Errorf("row %s: %s in %s has no case %q", row, function, dir, of)
			}
			tried[row]++
		}
	}
	for _, row := range rows {
		if tried[row] == 0 {
			t.Errorf("row %s names no test", row)
		}
	}
}

// TestLibrariesWithoutKnownFaults: HTTP/2 and CONNECT of what is older can be made
// to crash, or to take what follows a refused request for another one: CVE-2026-97032,
// CVE-2026-94439, CVE-2026-97054 and others.
func TestLibrariesWithoutKnownFaults(t *testing.T) {
	content, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for pattern, least := range map[string][3]int{
		`(?m)^toolchain go(\d+)\.(\d+)\.(\d+)$`:          {1, 27, 4},
		`(?m)^\tgolang\.org/x/net v(\d+)\.(\d+)\.(\d+)$`: {0, 61, 0},
	} {
		found := regexp.MustCompile(pattern).FindSubmatch(content)
		if found == nil {
			t.Fatalf("nothing in go.mod matches %s", pattern)
		}
		var got [3]int
		for i := range got {
			if got[i], err = strconv.Atoi(string(found[i+1])); err != nil {
				t.Fatal(err)
			}
		}
		if slices.Compare(got[:], least[:]) < 0 {
			t.Errorf("go.mod has %q; %v is the first without known faults", found[0], least)
		}
	}
}

func testFiles(t *testing.T, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(content)
	}
	return all.String()
}
