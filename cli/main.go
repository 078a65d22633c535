// Command ambit installs Ambit, checks it, and shows what it observes.
//
//	ambit install     apply the manifests, wait until every node captures
//	ambit uninstall   remove everything, on the nodes too
//	ambit check       coded checks, each with its reason and next step
//	ambit ca          what signs, which roots are trusted, what is revoked; rotate, revoke
//	ambit waypoint    apply, list, status, delete: what stands before Services
//	ambit workloads   what the mesh observes of every pod
//	ambit version     of this tool and of what the cluster runs
//
// It talks to the Kubernetes API alone, with the rights of its user.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambit-mesh/ambit/cli/authority"
	"github.com/ambit-mesh/ambit/cli/check"
	"github.com/ambit-mesh/ambit/cli/install"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/term"
	"github.com/ambit-mesh/ambit/cli/uninstall"
	"github.com/ambit-mesh/ambit/cli/waypoint"
	"github.com/ambit-mesh/ambit/cli/workloads"
	"github.com/ambit-mesh/ambit/deploy"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := newRoot().ExecuteContext(ctx)
	if err == nil {
		return
	}
	if !errors.Is(err, check.ErrFailed) { // its findings are on the screen already
		fmt.Fprintln(os.Stderr, "ambit:", err)
	}
	os.Exit(1)
}

// target is the cluster that a command is for.
type target struct {
	kubeconfig, context string
}

func (g *target) connect() (*kube.Cluster, error) {
	return kube.Connect(g.kubeconfig, g.context)
}

func newRoot() *cobra.Command {
	var g target
	root := &cobra.Command{
		Use: "ambit", Short: "An ambient service mesh for Kubernetes",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&g.kubeconfig, "kubeconfig", "", "kubeconfig file (default: KUBECONFIG, then ~/.kube/config)")
	root.PersistentFlags().StringVar(&g.context, "context", "", "kubeconfig context")
	root.AddCommand(newInstall(&g), newUninstall(&g), newCheck(&g), newWorkloads(&g), newWaypoint(&g), newAuthority(&g), newVersion(&g))
	return root
}

func valueFlags(cmd *cobra.Command, v *deploy.Values) {
	*v = deploy.Defaults()
	v.CNIBinDir, v.CNIConfDir = "", ""
	flags := cmd.Flags()
	flags.StringVar(&v.Repository, "repository", v.Repository, "first part of the images' names")
	flags.StringVar(&v.Tag, "tag", v.Tag, "tag of the images")
	flags.StringVar(&v.ClusterID, "cluster-id", v.ClusterID, "name of the cluster")
	flags.StringVar(&v.TrustDomain, "trust-domain", v.TrustDomain, "trust domain of all identities")
	flags.StringVar(&v.CNIBinDir, "cni-bin-dir", "", "folder of CNI plug-ins on the nodes (default: found from the distribution)")
	flags.StringVar(&v.CNIConfDir, "cni-conf-dir", "", "folder of CNI configuration on the nodes (default: found from the distribution)")
	flags.StringSliceVar(&v.ExcludedNamespaces, "exclude-namespaces", nil, "namespaces whose pods the CNI gate never holds, besides ambit-system and kube-system")
	flags.StringVar(&v.LogFormat, "log-format", v.LogFormat, "text or json")
	flags.StringVar(&v.LogLevel, "log-level", v.LogLevel, "debug, info, warn or error")
}

func newInstall(g *target) *cobra.Command {
	var (
		options install.Options
		dryRun  bool
		output  string
	)
	cmd := &cobra.Command{
		Use: "install", Short: "Install or upgrade Ambit, and wait until every node captures", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "yaml" {
				return fmt.Errorf("--output %q: only yaml is known", output)
			}
			if dryRun || output != "" {
				cluster, err := g.connect()
				if err != nil {
					cluster = nil // rendering for a repository needs no cluster
				}
				return install.DryRun(cmd.Context(), cluster, options, cmd.OutOrStdout())
			}
			cluster, err := g.connect()
			if err != nil {
				return err
			}
			return install.Run(cmd.Context(), cluster, options, term.New(os.Stdout))
		},
	}
	valueFlags(cmd, &options.Values)
	cmd.Flags().DurationVar(&options.Wait, "wait", 3*time.Minute, "how long to wait for the controller, and again for the nodes")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print the manifests and apply nothing")
	cmd.Flags().StringVarP(&output, "output", "o", "", "yaml: print the manifests, as --dry-run does")
	return cmd
}

func newUninstall(g *target) *cobra.Command {
	var (
		options uninstall.Options
		yes     bool
	)
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Remove Ambit, on the nodes too; pods go on with plain networking", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cluster, err := g.connect()
			if err != nil {
				return err
			}
			if options.Values, err = install.WithFolders(cmd.Context(), cluster, options.Values); err != nil {
				return err
			}
			options.Confirm = func() bool { return yes || confirmed() }
			return uninstall.Run(cmd.Context(), cluster, options, term.New(os.Stdout))
		},
	}
	valueFlags(cmd, &options.Values)
	cmd.Flags().DurationVar(&options.Wait, "wait", 3*time.Minute, "how long to wait for each step")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func confirmed() bool {
	fmt.Print("Go on? [y/N] ")
	answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	return strings.EqualFold(strings.TrimSpace(answer), "y")
}

func newCheck(g *target) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "check", Short: "Check the cluster and the mesh: what is wrong, why, and what to do", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cluster, err := g.connect()
			if err != nil {
				return err
			}
			findings := check.Run(cmd.Context(), cluster)
			switch output {
			case "json":
				if err := check.PrintJSON(cmd.OutOrStdout(), findings); err != nil {
					return err
				}
			case "":
				check.Print(term.New(os.Stdout), findings)
			default:
				return fmt.Errorf("--output %q: only json is known", output)
			}
			return check.Verdict(findings)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json")
	return cmd
}

func newWorkloads(g *target) *cobra.Command {
	var query workloads.Query
	cmd := &cobra.Command{
		Use: "workloads", Short: "What the mesh observes of every pod", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cluster, err := g.connect()
			if err != nil {
				return err
			}
			return workloads.Print(cmd.Context(), cluster, query, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVarP(&query.Namespace, "namespace", "n", "", "of one namespace (default: of all)")
	cmd.Flags().StringVarP(&query.Output, "output", "o", "", "wide, older (connections older than the capture), json, yaml or name")
	return cmd
}

// namespaced connects, and returns the namespace that a command is about.
func (g *target) namespaced(namespace string) (*kube.Cluster, string, error) {
	cluster, err := g.connect()
	if err != nil {
		return nil, "", err
	}
	return cluster, cmp.Or(namespace, cluster.Namespace), nil
}

func newWaypoint(g *target) *cobra.Command {
	parent := &cobra.Command{Use: "waypoint", Short: "Make, show and remove waypoints: what routes requests, and asks policy about them"}
	var namespace string
	parent.PersistentFlags().StringVarP(&namespace, "namespace", "n", "", "of the waypoint (default: that of the kubeconfig's context; list: all)")
	nameOf := func(args []string) string {
		if len(args) == 1 {
			return args[0]
		}
		return waypoint.DefaultName
	}
	var options waypoint.Options
	apply := &cobra.Command{
		Use: "apply", Short: "Make a waypoint, or change the one that is there", Args: cobra.NoArgs,
		Example: "  ambit waypoint apply -n shop --enroll-namespace --wait   # and have the namespace's Services go through it\n" +
			"  ambit waypoint apply -n infra --allow-namespaces all     # for other namespaces too",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cluster, ns, err := g.namespaced(namespace)
			if err != nil {
				return err
			}
			options.Namespace = ns
			return waypoint.Apply(cmd.Context(), cluster, options, term.New(os.Stdout))
		},
	}
	flags := apply.Flags()
	flags.StringVar(&options.Name, "name", waypoint.DefaultName, "name of the Gateway, and of all that runs for it")
	flags.StringVar(&options.For, "for", "", "what of a labelled namespace goes through it: service, workload or all (default: service)")
	flags.StringVar(&options.AllowNamespaces, "allow-namespaces", "", "whose Services and pods may use it: same or all (default: same)")
	flags.BoolVar(&options.EnrollNamespace, "enroll-namespace", false, "label the namespace once the waypoint is programmed, so that it uses it")
	flags.DurationVar(&options.Wait, "wait", 0, "wait until it is programmed and in force, so long at most (without a value: 2m)")
	flags.Lookup("wait").NoOptDefVal = "2m"

	var listOutput, statusOutput string
	list := &cobra.Command{
		Use: "list", Short: "Show the waypoints, and how much of what is bound to them is in force", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cluster, err := g.connect()
			if err != nil {
				return err
			}
			return waypoint.PrintList(cmd.Context(), cluster, namespace, listOutput, cmd.OutOrStdout())
		},
	}
	list.Flags().StringVarP(&listOutput, "output", "o", "", "json")
	status := &cobra.Command{
		Use: "status [NAME]", Short: "Show one: its conditions, addresses, what is bound to it and whether that is in force", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cluster, ns, err := g.namespaced(namespace)
			if err != nil {
				return err
			}
			return waypoint.PrintStatus(cmd.Context(), cluster, ns, nameOf(args), statusOutput, cmd.OutOrStdout())
		},
	}
	status.Flags().StringVarP(&statusOutput, "output", "o", "", "json")
	var force bool
	remove := &cobra.Command{
		Use: "delete [NAME]", Short: "Remove one that nothing is bound to", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cluster, ns, err := g.namespaced(namespace)
			if err != nil {
				return err
			}
			return waypoint.Delete(cmd.Context(), cluster, ns, nameOf(args), force, term.New(os.Stdout))
		},
	}
	remove.Flags().BoolVar(&force, "force", false, "also if something is bound to it, which is refused from then on")
	parent.AddCommand(apply, list, status, remove)
	return parent
}

func newAuthority(g *target) *cobra.Command {
	parent := &cobra.Command{Use: "ca", Short: "What signs for the mesh, which roots it trusts, and what is revoked"}
	var output string
	status := &cobra.Command{
		Use: "status", Short: "Show roots, issuer, what a rotation waits for, and what is revoked", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cluster, err := g.connect()
			if err != nil {
				return err
			}
			return authority.Print(cmd.Context(), cluster, output, cmd.OutOrStdout())
		},
	}
	status.Flags().StringVarP(&output, "output", "o", "", "json")
	var root, intermediate bool
	rotate := &cobra.Command{
		Use: "rotate", Short: "Change to a new root or intermediate, with overlap: no connection is cut", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := "intermediate"
			if root {
				what = "root"
			}
			cluster, err := g.connect()
			if err != nil {
				return err
			}
			if err := authority.Rotate(cmd.Context(), cluster, what); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "asked for another %s; `ambit ca status` shows how far it is\n", what)
			return nil
		},
	}
	rotate.Flags().BoolVar(&root, "root", false, "the root: it signs once every node has acknowledged it")
	rotate.Flags().BoolVar(&intermediate, "intermediate", false, "the intermediate that signs certificates")
	rotate.MarkFlagsOneRequired("root", "intermediate")
	rotate.MarkFlagsMutuallyExclusive("root", "intermediate")
	parent.AddCommand(status, rotate, newRevoke(g))
	return parent
}

func newRevoke(g *target) *cobra.Command {
	var (
		revocation authority.Revocation
		pod        string
		yes        bool
		wait       time.Duration
	)
	cmd := &cobra.Command{
		Use:   "revoke [SERIAL]",
		Short: "Revoke a certificate, or all of an identity up to now: its live connections are cut, and it gets another one",
		Example: "  ambit ca revoke 7d1f0c...                                   # a certificate, as `ambit workloads -o wide` shows it\n" +
			"  ambit ca revoke --pod shop/web-1                            # the one that a pod has now\n" +
			"  ambit ca revoke --identity spiffe://cluster.local/ns/shop/sa/web",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				revocation.Serial = args[0]
			}
			if err := revocation.Check(pod); err != nil {
				return err
			}
			cluster, err := g.connect()
			if err != nil {
				return err
			}
			if pod != "" {
				if revocation.Serial, err = authority.SerialOf(cmd.Context(), cluster, pod); err != nil {
					return err
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is revoked: its live connections are cut, and whoever else has its key is refused.\n", revocation)
			if !yes && !confirmed() {
				return errors.New("not confirmed, nothing was revoked")
			}
			return authority.Revoke(cmd.Context(), cluster, revocation, wait, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&revocation.Identity, "identity", "", "all certificates of this SPIFFE ID that were issued up to now")
	cmd.Flags().StringVar(&pod, "pod", "", "the certificate that the pod `namespace/name` has now")
	cmd.Flags().StringVar(&revocation.Issuer, "issuer", "", "key id of who signed the certificate (default: all that signed for workloads)")
	cmd.Flags().StringVar(&revocation.Note, "note", "", "why, for whoever reads `ambit ca status`")
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait for the controller and the nodes")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func newVersion(g *target) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Versions of this tool and of what the cluster runs", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return printVersion(cmd.Context(), g, cmd.OutOrStdout())
		},
	}
}
