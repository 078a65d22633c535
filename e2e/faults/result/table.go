package result

import (
	"bytes"
	"fmt"
	"strings"
)

// About says what the rows are of.
type About struct {
	// Machine and Version that they were measured on.
	Machine, Version string
	Faults           []Fault
}

// Fault explains one, in the order of the table.
type Fault struct {
	Name string
	// What breaks, How it is made to, and Open, if anything, what is known to stay
	// open then.
	What, How, Open string
}

const preamble = `# Faults

What happens to the mesh's promise when things die, are missing, late or malformed. Written by ` + "`make faults`" + `; the same in
[faults.json](faults.json). Measured on %s, Ambit %s.

Three namespaces have the same applications at the same time: one is enrolled and strict, one enrolled and permissive, one is
not enrolled: the **control**. In each, pods on two nodes, two of them on the same one, open connections to each other ten times
a second over IPv4 and IPv6, keep others open, and where the fault is an attack, attack each other. Pods of the control also ask
the enrolled ones, as **strangers**. Then the fault is put in force, for some seconds, and its cause is removed.

All that crosses the links of the nodes is captured from before the fault until after the recovery. **Plaintext** is every TCP packet of a
pod that is not of a connection to port 15008 nor the kubelet's to the probed port, and every packet in which the words of the
applications are readable. The control's are counted in the same capture by the same rules: they show that it sees.

| column | is |
|---|---|
| attempted | new connections and attacks while the fault was in force |
| tunnelled | packets to or from port 15008 |
| plaintext | as above; in strict mode it has to be zero |
| control | plaintext packets of the control |
| refused | of the attempted connections, those that were not answered |
| survived | connections that stood before the fault and lived on, of how many |
| strangers | of their attempts while the fault was in force, those that were answered |
| recovery | from the end of the cause (in brackets: from the fault itself, whose cause goes by itself) until every pod answers every other |

`

// table renders rows to read.
func (a About) table(rows []Row) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, preamble, a.Machine, a.Version)
	b.WriteString("| fault | mode | attempted | tunnelled | plaintext | control | refused | survived | strangers | recovery |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %s | %d | %d | %d of %d | %d of %d | %s |\n", r.Fault, r.Mode, r.Attempted, r.CapturedPackets,
			r.plaintext(), r.ControlPlaintextPackets, r.Refused, r.Survived, r.Kept, r.StrangersAnswered, r.StrangersAttempted, r.recovery())
	}
	b.WriteString("\n## The faults\n\n")
	for _, f := range a.Faults {
		if f.What == "" {
			continue // one of those before, with more
		}
		fmt.Fprintf(&b, "- **%s**: %s %s", f.Name, f.What, f.How)
		if f.Open != "" {
			fmt.Fprintf(&b, " Known to be open: %s", f.Open)
		}
		b.WriteByte('\n')
	}
	var told []string
	for _, r := range rows {
		for _, problem := range r.Problems() {
			told = append(told, fmt.Sprintf("- %s, %s: %s", r.Fault, r.Mode, problem))
		}
	}
	if len(told) > 0 {
		fmt.Fprintf(&b, "\n## What does not hold\n\n%s\n", strings.Join(told, "\n"))
	}
	return b.Bytes()
}

func (r Row) plaintext() string {
	if r.PlaintextPackets > 0 && r.Mode == Strict {
		return fmt.Sprintf("**%d**", r.PlaintextPackets)
	}
	return fmt.Sprint(r.PlaintextPackets)
}

func (r Row) recovery() string {
	if r.RecoveryMS < 0 {
		return "**none**"
	}
	text := fmt.Sprintf("%.1f s", float64(r.RecoveryMS)/1000)
	if r.SelfHealed {
		text = "(" + text + ")"
	}
	return text
}
