// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0

//go:build ignore

/* Outbound: which connect(2) is ztunnel's to carry.
 *
 * Runs for every TCP and UDP connect below the cgroup it is attached to. A captured socket gets a mark; a rule in its
 * namespace routes what is marked to lo, where steer hands it to the outbound listener. The application sees nothing of
 * it: no address is rewritten.
 */
#include "maps.h"

#define ALLOW 1
#define DENY 0 /* connect(2) returns EPERM */

/* Levels of the cgroup hierarchy in which the cgroup of all pods is looked for: nested nodes have it at the fourth. */
#define CGROUP_LEVELS 8

/* Set at load. */
const volatile __u64 host_cookie; /* of the node's network namespace */
const volatile __u64 pod_cgroups[MAX_POD_CGROUPS]; /* ids of the cgroups below which all pods are; zero: none */

static __always_inline int end(enum verdict verdict, int answer)
{
	count(verdict);
	return answer;
}

/* A socket bound to an address of a family other than the destination's fails in connect(2) anyway. */
static __always_inline bool source_is_foreign(struct bpf_sock *sk, const struct addr *self)
{
	struct addr source = {};

	if (sk->family == AF_INET) {
		if (!sk->src_ip4)
			return false;
		addr_from4(&source, sk->src_ip4);
	} else {
		source.word[0] = sk->src_ip6[0];
		source.word[1] = sk->src_ip6[1];
		source.word[2] = sk->src_ip6[2];
		source.word[3] = sk->src_ip6[3];
		if (addr_is_none(&source) || (addr_is4(&source) && source.word[3] == 0))
			return false;
	}
	return !addr_equal(&source, self);
}

/* Tells whether a connection with the ends of this delivery exists: the client's own, to ztunnel or to the application, if its
 * ports reach into the range that deliveries use. Two such would break each other. If there is none the lookup ends among the
 * listeners, by steer's answer. A connection of which only the application's TIME_WAIT is left is over: it gives way to a new SYN
 * (RFC 6191), as it does without ztunnel; where servers close first, such fill the range in a minute.
 *
 * The question must leave no trace: the permit of these ends may be that of a delivery whose handshake is on its way. */
static __always_inline bool delivery_is_taken(struct bpf_sock_addr *ctx, struct bpf_sock *sk, const struct addr *destination)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *found;
	__u32 size, state;

	if (addr_is4(destination)) {
		tuple.ipv4.saddr = sk->src_ip4;
		tuple.ipv4.daddr = destination->word[3];
		tuple.ipv4.sport = bpf_htons((__u16)sk->src_port);
		tuple.ipv4.dport = (__u16)ctx->user_port;
		size = sizeof(tuple.ipv4);
	} else {
		tuple.ipv6.saddr[0] = sk->src_ip6[0];
		tuple.ipv6.saddr[1] = sk->src_ip6[1];
		tuple.ipv6.saddr[2] = sk->src_ip6[2];
		tuple.ipv6.saddr[3] = sk->src_ip6[3];
		tuple.ipv6.daddr[0] = destination->word[0];
		tuple.ipv6.daddr[1] = destination->word[1];
		tuple.ipv6.daddr[2] = destination->word[2];
		tuple.ipv6.daddr[3] = destination->word[3];
		tuple.ipv6.sport = bpf_htons((__u16)sk->src_port);
		tuple.ipv6.dport = (__u16)ctx->user_port;
		size = sizeof(tuple.ipv6);
	}
	ask(1);
	found = bpf_skc_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	ask(-1);
	if (!found)
		return false;
	state = found->state;
	bpf_sk_release(found);
	return state != BPF_TCP_LISTEN && state != BPF_TCP_TIME_WAIT;
}

static __always_inline bool caller_is_pod(void)
{
#pragma unroll
	for (int level = 1; level <= CGROUP_LEVELS; level++) {
		__u64 id = bpf_get_current_ancestor_cgroup_id(level);

		if (!id)
			return false;
#pragma unroll
		for (int i = 0; i < MAX_POD_CGROUPS; i++)
			if (id == pod_cgroups[i])
				return true;
	}
	return false;
}

static __always_inline bool caller_is_kubelet(const struct node *node)
{
	__u64 id = bpf_get_current_cgroup_id();

#pragma unroll
	for (int i = 0; i < MAX_KUBELETS; i++)
		if (node->kubelets[i] && id == node->kubelets[i])
			return !caller_is_pod();
	return false;
}

/* The kubelet may pass pods' listeners, and no one else of the node: its sockets get a tag, for permit cannot tell who connects. */
static __always_inline int from_node(struct bpf_sock_addr *ctx, const struct node *node, const struct addr *destination)
{
	enum own kubelet = OWN_KUBELET;
	struct bpf_sock *sk = ctx->sk;

	if (!bpf_map_lookup_elem(&mesh_pods, destination) || !caller_is_kubelet(node))
		return end(VERDICT_CONNECT_NOT_ENROLLED, ALLOW);
	if (!sk || !bpf_sk_storage_get(&mesh_own, sk, &kubelet, BPF_SK_STORAGE_GET_F_CREATE))
		return end(VERDICT_CONNECT_DENIED_TAG, DENY);
	return end(VERDICT_CONNECT_KUBELET, ALLOW);
}

static __always_inline bool is_tcp(struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_TCP || ctx->protocol == IPPROTO_MULTIPATH_TCP;
}

static __always_inline int not_enrolled(struct bpf_sock_addr *ctx, __u64 cookie, const struct addr *destination)
{
	__u32 only = 0;
	struct node *node = bpf_map_lookup_elem(&mesh_node, &only);

	if (!node)
		return end(VERDICT_CONNECT_DENIED_NO_NODE, DENY);
	if (cookie == host_cookie)
		return from_node(ctx, node, destination);
	/* Who is no pod, a CNI plugin or an administrator in a namespace, is not meant. */
	if (!(node->flags & NODE_REFUSES_UNCLASSIFIED) || !is_tcp(ctx) || addr_is_loopback(destination) || !caller_is_pod())
		return end(VERDICT_CONNECT_NOT_ENROLLED, ALLOW);
	if (!bpf_map_lookup_elem(&mesh_classes, &cookie))
		return end(VERDICT_CONNECT_DENIED_UNCLASSIFIED, DENY);
	return end(VERDICT_CONNECT_CLASSIFIED, ALLOW);
}

/* Tells whether the SYN, which the mark brings to the pod's own lo, would be taken by a socket that is not ztunnel's: without
 * steer, whose link goes with its last holder, an application of the pod that listens at any address would pass for the
 * destination. That nobody takes it is all right: it is refused. */
static __always_inline bool would_go_astray(struct bpf_sock_addr *ctx, const struct addr *self, const struct addr *destination)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *found;
	enum own *own;
	bool astray;
	__u32 size;

	if (addr_is4(destination)) {
		tuple.ipv4.saddr = self->word[3];
		tuple.ipv4.daddr = destination->word[3];
		tuple.ipv4.dport = (__u16)ctx->user_port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, self, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, destination, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.dport = (__u16)ctx->user_port;
		size = sizeof(tuple.ipv6);
	}
	found = bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!found)
		return false;
	own = bpf_sk_storage_get(&mesh_own, found, 0, 0);
	astray = !own || *own != OWN_TUNNEL;
	bpf_sk_release(found);
	return astray;
}

static __always_inline int connect_decide(struct bpf_sock_addr *ctx, const struct addr *destination)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	struct enrolment *pod = bpf_map_lookup_elem(&mesh_enrolled, &cookie);
	char no_device[4] = {};
	__u32 mark = MARK;
	struct bpf_sock *sk;
	struct addr *self;
	enum own *own;

	if (!pod)
		return not_enrolled(ctx, cookie, destination);
	if (!is_tcp(ctx))
		return end(VERDICT_CONNECT_NOT_TCP, ALLOW);
	sk = ctx->sk;
	if (!sk)
		return end(VERDICT_CONNECT_DENIED_NO_SOCKET, DENY);
	own = bpf_sk_storage_get(&mesh_own, sk, 0, 0);
	if (own && *own == OWN_DELIVERY && sk->src_port && delivery_is_taken(ctx, sk, destination))
		return end(VERDICT_CONNECT_DENIED_TAKEN, DENY);
	if (own)
		return end(VERDICT_CONNECT_OWN, ALLOW);
	if (addr_is_loopback(destination) || addr_equal(destination, &pod->self4) ||
	    addr_equal(destination, &pod->self6))
		return end(VERDICT_CONNECT_LOCAL, ALLOW);
	if (addr_is_link_local6(destination))
		return end(VERDICT_CONNECT_LINK_LOCAL, ALLOW);

	/* Without an address of its own there is no local route for this family, and the mark would lead nowhere. */
	self = addr_is4(destination) ? &pod->self4 : &pod->self6;
	if (addr_is_none(self))
		return end(VERDICT_CONNECT_DENIED_NO_ADDRESS, DENY);
	/* steer knows an outbound connection by its source: any other would not reach ztunnel. */
	if (source_is_foreign(sk, self))
		return end(VERDICT_CONNECT_DENIED_FOREIGN_SOURCE, DENY);
	if (would_go_astray(ctx, self, destination))
		return end(VERDICT_CONNECT_DENIED_NOT_STEERED, DENY);
	/* A socket bound to a device ignores the route that the mark selects. */
	if (sk->bound_dev_if && bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTODEVICE, no_device, sizeof(no_device)))
		return end(VERDICT_CONNECT_DENIED_UNBIND, DENY);
	if (bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)))
		return end(VERDICT_CONNECT_DENIED_MARK, DENY);
	return end(VERDICT_CONNECT_CAPTURED, ALLOW);
}

SEC("cgroup/connect4")
int connect_connect4(struct bpf_sock_addr *ctx)
{
	struct addr destination;

	addr_from4(&destination, ctx->user_ip4);
	return connect_decide(ctx, &destination);
}

SEC("cgroup/connect6")
int connect_connect6(struct bpf_sock_addr *ctx)
{
	struct addr destination;

	destination.word[0] = ctx->user_ip6[0];
	destination.word[1] = ctx->user_ip6[1];
	destination.word[2] = ctx->user_ip6[2];
	destination.word[3] = ctx->user_ip6[3];
	return connect_decide(ctx, &destination);
}

/* No map names these types; variables keep them in the BTF, from which their Go twins are generated. */
const enum number *number_in_btf __attribute__((unused));
const enum node_flag *node_flag_in_btf __attribute__((unused));
const enum listener *listener_in_btf __attribute__((unused));

char _license[] SEC("license") = "GPL";
