// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0

//go:build ignore

/* Whether a captured connection's SYN goes on to the outbound listener, or waits until ztunnel has reached who it is for: the
 * listener would accept at once, and the application could no longer be told in connect(2) that nobody is there.
 *
 * And which reset does not go on, because it is untrue.
 *
 * Runs in a pod's namespace for what leaves by lo, where marked packets are routed: one program a pod, with its addresses and
 * slot loaded as constants. A SYN that is kept goes to ztunnel instead, which sends it on its way itself, or answers it. Of
 * a connection nothing is remembered here: if ztunnel says nothing, the kernel repeats the SYN, and it comes by again.
 */
#include "maps.h"
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

/* To the next program, or on its way. The same number for tcx and for clsact. */
#define PASS TC_ACT_UNSPEC

/* Set at load. */
const volatile struct addr self4; /* the pod's addresses; all zero: has none */
const volatile struct addr self6;
const volatile __u32 slot; /* in mesh_listeners */
const volatile bool captures_dns;

static __always_inline int end(enum verdict verdict, int answer)
{
	count(verdict);
	return answer;
}

/* Drops without a word to the sender, who takes the SYN for lost on the wire and repeats it in its own time. To drop it by
 * TC_ACT_SHOT would count as local congestion: the sender would retry every half second and give up after seconds. What is
 * redirected to no device is dropped, and counts as sent. */
static __always_inline int keep(enum verdict verdict)
{
	return end(verdict, bpf_redirect(0, 0));
}

static __always_inline bool is_self(const struct addr *a)
{
	return !addr_is_none(a) && (addr_equal(a, &self4) || addr_equal(a, &self6));
}

/* What steer hands to the outbound listener. */
static __always_inline bool is_outbound(const struct addr *source, const struct addr *destination)
{
	return is_self(source) && !is_self(destination) && !addr_is_loopback(destination) &&
	       !addr_is_link_local6(destination);
}

static __always_inline long load(struct __sk_buff *skb, __u32 offset, void *to, __u32 size)
{
	return bpf_skb_load_bytes_relative(skb, offset, to, size, BPF_HDR_START_NET);
}

/* Returns the size of the IP header that TCP follows; 0: none. */
static __always_inline __u32 read_ip(struct __sk_buff *skb, struct addr *source, struct addr *destination)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (load(skb, 0, &ip, sizeof(ip)) || ip.protocol != IPPROTO_TCP)
			return 0;
		addr_from4(source, ip.saddr);
		addr_from4(destination, ip.daddr);
		return ip.ihl * 4;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (load(skb, 0, &ip, sizeof(ip)) || ip.nexthdr != IPPROTO_TCP)
			return 0;
		__builtin_memcpy(source, &ip.saddr, sizeof(*source));
		__builtin_memcpy(destination, &ip.daddr, sizeof(*destination));
		return sizeof(ip);
	}
	return 0;
}

/* Tells whether a packet is a reset by which the kernel says that nobody is there, and somebody is. Until Linux 6.19, as a connection
 * is made its place in the kernel's table passes from the request to the socket, and for a moment there is neither: what another
 * CPU looks up then, a client's first data, comes to the listener, which answers with a reset. Between the application and ztunnel
 * the two are on different CPUs more often than not. Without the reset the data is sent again. */
static __always_inline bool is_stray_reset(struct __sk_buff *skb)
{
	struct addr source = {}, destination = {};
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *found;
	__u32 ip_size, size, state;
	struct tcphdr tcp;

	ip_size = read_ip(skb, &source, &destination);
	if (!ip_size || load(skb, ip_size, &tcp, sizeof(tcp)) || !tcp.rst)
		return false;
	/* As what it answers: the other way. */
	if (addr_is4(&source)) {
		tuple.ipv4.saddr = destination.word[3];
		tuple.ipv4.daddr = source.word[3];
		tuple.ipv4.sport = tcp.dest;
		tuple.ipv4.dport = tcp.source;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &destination, sizeof(destination));
		__builtin_memcpy(tuple.ipv6.daddr, &source, sizeof(source));
		tuple.ipv6.sport = tcp.dest;
		tuple.ipv6.dport = tcp.source;
		size = sizeof(tuple.ipv6);
	}
	ask(1);
	found = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	ask(-1);
	if (!found)
		return false;
	state = found->state;
	bpf_sk_release(found);
	return state == BPF_TCP_ESTABLISHED || state == BPF_TCP_SYN_RECV;
}

/* While the process lives that reads what is held, its listener is there. */
static __always_inline bool has_listener(void)
{
	__u32 key = slot * SLOT_SIZE + LISTENER_OUTBOUND;
	struct bpf_sock *sk = bpf_map_lookup_elem(&mesh_listeners, &key);

	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

SEC("tc")
int hold_egress(struct __sk_buff *skb)
{
	struct addr source = {}, destination = {};
	struct tcphdr tcp;
	struct bpf_sock *sk;
	struct held *held;
	__u32 ip_size, size;

	sk = skb->sk;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	/* What the kernel answers is of a listener, or before Linux 6.14 of a socket of its own. */
	if ((!sk || sk->state == BPF_TCP_LISTEN || sk->state == BPF_TCP_CLOSE) && is_stray_reset(skb))
		return keep(VERDICT_HOLD_DROPPED_RESET);
	if (skb->mark != MARK)
		return end(VERDICT_HOLD_NOT_CAPTURED, PASS);
	/* Nor is a SYN that ztunnel sends on its way, from a raw socket. */
	if (!sk || sk->state != BPF_TCP_SYN_SENT)
		return end(VERDICT_HOLD_NOT_SYN, PASS);
	if (bpf_sk_storage_get(&mesh_own, sk, 0, 0))
		return end(VERDICT_HOLD_OWN, PASS);
	ip_size = read_ip(skb, &source, &destination);
	if (!ip_size || load(skb, ip_size, &tcp, sizeof(tcp)))
		return end(VERDICT_HOLD_UNREADABLE, PASS);
	if (!tcp.syn || tcp.ack)
		return end(VERDICT_HOLD_NOT_SYN, PASS);
	if (!is_outbound(&source, &destination))
		return end(VERDICT_HOLD_LOCAL, PASS);
	/* ztunnel answers it itself: there is nobody to reach first. */
	if (captures_dns && tcp.dest == bpf_htons(PORT_DNS))
		return end(VERDICT_HOLD_DNS, PASS);
	/* steer says what is to become of it. */
	if (!has_listener())
		return end(VERDICT_HOLD_NO_LISTENER, PASS);
	size = ip_size + tcp.doff * 4;
	held = bpf_ringbuf_reserve(&mesh_held, sizeof(*held), 0);
	if (!held)
		return keep(VERDICT_HOLD_FULL);
	if (size < ip_size + sizeof(tcp) || size > SYN_SIZE || load(skb, 0, held->syn, size)) {
		bpf_ringbuf_discard(held, 0);
		return end(VERDICT_HOLD_UNREADABLE, PASS);
	}
	held->slot = slot;
	held->size = size;
	bpf_ringbuf_submit(held, 0);
	return keep(VERDICT_HOLD_HELD);
}

/* No map names this type; a variable keeps it in the BTF, from which its Go twin is generated. */
const struct held *held_in_btf __attribute__((unused));

char _license[] SEC("license") = "GPL";
