// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0

//go:build ignore

/* Which connections may reach a captured pod's application past ztunnel: the kubelet's, which connect has marked as such, and
 * those by which ztunnel delivers what it let in.
 *
 * Runs as the SYN is about to leave, when the local port is known, and notes the 4-tuple for steer. The note stays until
 * the socket closes, because a handshake under SYN cookies looks the listener up a second time.
 */
#include "maps.h"

static __always_inline int end(enum verdict verdict)
{
	count(verdict);
	return 1;
}

/* Every field is loaded, whatever the family, and volatile: clang would merge the loads of two branches into one through a
 * computed pointer into the context, which the verifier refuses. */
static __always_inline void flow_of(volatile struct bpf_sock_ops *ctx, struct flow *flow)
{
	__u32 source4 = ctx->local_ip4;
	__u32 destination4 = ctx->remote_ip4;

	flow->source.word[0] = ctx->local_ip6[0];
	flow->source.word[1] = ctx->local_ip6[1];
	flow->source.word[2] = ctx->local_ip6[2];
	flow->source.word[3] = ctx->local_ip6[3];
	flow->destination.word[0] = ctx->remote_ip6[0];
	flow->destination.word[1] = ctx->remote_ip6[1];
	flow->destination.word[2] = ctx->remote_ip6[2];
	flow->destination.word[3] = ctx->remote_ip6[3];
	if (ctx->family == AF_INET) {
		addr_from4(&flow->source, source4);
		addr_from4(&flow->destination, destination4);
	}
	/* local_port is in host byte order, remote_port a 32-bit number in network byte order. */
	flow->source_port = bpf_htons((__u16)ctx->local_port);
	flow->destination_port = bpf_htons((__u16)bpf_ntohl(ctx->remote_port));
}

static __always_inline int withdraw(struct bpf_sock_ops *ctx)
{
	struct flow flow = {};

	if (ctx->args[1] != BPF_TCP_CLOSE)
		return end(VERDICT_PERMIT_OTHER_CALLBACK);
	flow_of(ctx, &flow);
	bpf_map_delete_elem(&mesh_permits, &flow);
	return end(VERDICT_PERMIT_WITHDRAWN);
}

static __always_inline int grant(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct flow flow = {};
	enum permit permit;
	enum own *own;

	own = sk ? bpf_sk_storage_get(&mesh_own, sk, 0, 0) : 0;
	if (!own || (*own != OWN_DELIVERY && *own != OWN_KUBELET))
		return end(VERDICT_PERMIT_NOT_OURS);
	permit = *own == OWN_DELIVERY ? PERMIT_DELIVERY : PERMIT_KUBELET;
	flow_of(ctx, &flow);
	/* A delivery is to a captured pod, whatever the map says: without passage it would come back to ztunnel. */
	if (permit != PERMIT_DELIVERY && !bpf_map_lookup_elem(&mesh_pods, &flow.destination))
		return end(VERDICT_PERMIT_NOT_ENROLLED);
	if (flow.destination_port == bpf_htons(PORT_HBONE))
		return end(VERDICT_PERMIT_TUNNEL_PORT);
	/* Ask for the close first: a permit that nothing withdraws must not come to be. */
	if (bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG))
		return end(VERDICT_PERMIT_REFUSED);
	if (bpf_map_update_elem(&mesh_permits, &flow, &permit, BPF_ANY))
		return end(VERDICT_PERMIT_REFUSED);
	return end(VERDICT_PERMIT_GRANTED);
}

SEC("sockops")
int permit_sockops(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		return grant(ctx);
	case BPF_SOCK_OPS_STATE_CB:
		return withdraw(ctx);
	default:
		return end(VERDICT_PERMIT_OTHER_CALLBACK);
	}
}

char _license[] SEC("license") = "GPL";
