// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0

//go:build ignore

/* Which listener takes a new connection in a pod's namespace: one program a pod, with its addresses and slot loaded as
 * constants, so that no lookup can ever find another pod's listener.
 *
 * Runs where the kernel looks for a listening socket. Connections that exist already never come here.
 */
#include "maps.h"

/* Set at load. */
const volatile struct addr self4; /* the pod's addresses; all zero: has none */
const volatile struct addr self6;
const volatile __u32 slot;	  /* in mesh_listeners */
const volatile __u16 own_ports[SLOT_SIZE]; /* host byte order: what the pod's listeners are bound to; zero: none */
const volatile bool captures_dns;

/* Tells whether nobody connects: connect asks. */
static __always_inline bool is_asked(void)
{
	__u32 only = 0;
	__u32 *asking = bpf_map_lookup_elem(&mesh_asking, &only);

	return asking && *asking;
}

static __always_inline int end(enum verdict verdict, int answer)
{
	count(is_asked() ? VERDICT_STEER_ASKED : verdict);
	return answer;
}

static __always_inline bool is_self(const struct addr *a)
{
	return !addr_is_none(a) && (addr_equal(a, &self4) || addr_equal(a, &self6));
}

/* Answered with a reset. An earlier program of the namespace may have selected a socket, which would win over SK_DROP. */
static __always_inline int drop(struct bpf_sk_lookup *ctx, enum verdict verdict)
{
	bpf_sk_assign(ctx, 0, BPF_SK_LOOKUP_F_REPLACE);
	return end(verdict, SK_DROP);
}

/* Leaves the connection to the namespace's own sockets. ztunnel's listeners are bound there too, and must not be reached
 * by asking for their ports: whoever gets to the outbound listener speaks in the pod's name. */
static __always_inline int leave(struct bpf_sk_lookup *ctx, enum verdict verdict)
{
	__u32 port = ctx->local_port;

	if (port == own_ports[LISTENER_OUTBOUND] || port == own_ports[LISTENER_PLAINTEXT] ||
	    port == own_ports[LISTENER_HBONE] || port == own_ports[LISTENER_DNS_STREAM])
		return drop(ctx, VERDICT_STEER_DROPPED_OWN_PORT);
	return end(verdict, SK_PASS);
}

/* No listener, no connection. */
static __always_inline int hand_to(struct bpf_sk_lookup *ctx, enum listener listener, enum verdict verdict)
{
	__u32 key = slot * SLOT_SIZE + listener;
	struct bpf_sock *sk = bpf_map_lookup_elem(&mesh_listeners, &key);
	long failed;

	if (!sk)
		return drop(ctx, VERDICT_STEER_DROPPED_NO_LISTENER);
	failed = bpf_sk_assign(ctx, sk, BPF_SK_LOOKUP_F_REPLACE);
	bpf_sk_release(sk);
	if (failed)
		return drop(ctx, VERDICT_STEER_DROPPED_ASSIGN);
	return end(verdict, SK_PASS);
}

/* Loaded as in permit.c, for the same reason. */
static __always_inline void flow_of(volatile struct bpf_sk_lookup *ctx, struct flow *flow)
{
	__u32 source4 = ctx->remote_ip4;
	__u32 destination4 = ctx->local_ip4;

	flow->source.word[0] = ctx->remote_ip6[0];
	flow->source.word[1] = ctx->remote_ip6[1];
	flow->source.word[2] = ctx->remote_ip6[2];
	flow->source.word[3] = ctx->remote_ip6[3];
	flow->destination.word[0] = ctx->local_ip6[0];
	flow->destination.word[1] = ctx->local_ip6[1];
	flow->destination.word[2] = ctx->local_ip6[2];
	flow->destination.word[3] = ctx->local_ip6[3];
	if (ctx->family == AF_INET) {
		addr_from4(&flow->source, source4);
		addr_from4(&flow->destination, destination4);
	}
	flow->source_port = ctx->remote_port;
	flow->destination_port = bpf_htons((__u16)ctx->local_port);
}

/* Datagrams: only what the pod asks other hosts' DNS servers, which dns.c brought here. */
static __always_inline int steer_datagram(struct bpf_sk_lookup *ctx, const struct flow *flow)
{
	if (ctx->local_port == own_ports[LISTENER_DNS])
		return drop(ctx, VERDICT_STEER_DROPPED_OWN_PORT);
	if (captures_dns && ctx->local_port == PORT_DNS && is_self(&flow->source) && !is_self(&flow->destination) &&
	    !addr_is_loopback(&flow->destination) && !addr_is_link_local6(&flow->destination))
		return hand_to(ctx, LISTENER_DNS, VERDICT_STEER_DNS);
	return end(VERDICT_STEER_NOT_TCP, SK_PASS);
}

SEC("sk_lookup")
int steer_sk_lookup(struct bpf_sk_lookup *ctx)
{
	struct flow flow = {};
	bool from_self;

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return end(VERDICT_STEER_NOT_TCP, SK_PASS);
	flow_of(ctx, &flow);
	if (ctx->protocol == IPPROTO_UDP)
		return steer_datagram(ctx, &flow);
	from_self = is_self(&flow.source);

	if (addr_is_loopback(&flow.destination) || addr_is_link_local6(&flow.destination))
		return leave(ctx, VERDICT_STEER_LOCAL);
	if (!is_self(&flow.destination)) {
		/* To another host, by the route that the mark selects; or to an address that the mesh does not know, of a
		 * second network, from there or from the pod itself. */
		if (from_self && captures_dns && ctx->local_port == PORT_DNS)
			return hand_to(ctx, LISTENER_DNS_STREAM, VERDICT_STEER_DNS);
		if (from_self)
			return hand_to(ctx, LISTENER_OUTBOUND, VERDICT_STEER_OUTBOUND);
		return leave(ctx, VERDICT_STEER_FOREIGN);
	}
	if (from_self)
		return leave(ctx, VERDICT_STEER_LOCAL);
	if (bpf_map_lookup_elem(&mesh_permits, &flow))
		return leave(ctx, VERDICT_STEER_PERMITTED);
	if (ctx->local_port == PORT_HBONE)
		return hand_to(ctx, LISTENER_HBONE, VERDICT_STEER_HBONE);
	return hand_to(ctx, LISTENER_PLAINTEXT, VERDICT_STEER_PLAINTEXT);
}

char _license[] SEC("license") = "GPL";
