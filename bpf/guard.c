// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0

//go:build ignore

/* What may leave a pod. ztunnel itself reaches strict pods by tunnels alone, from whatever pod: that is looked at here, since what
 * decides it is a program with faults of its own. In strict mode, and where the way out of the mesh is denied, TCP leaves from ztunnel's sockets, in answer
 * to the kubelet, and for a time from connections that are older than the pod's capture; what could be TCP and cannot be read does
 * not leave. Of what is not TCP, egress.h says what may where the way out is denied. Policies on trial drop nothing: what they would
 * have dropped is told of, once, where it is dropped for another's sake or where the last guard lets it pass.
 *
 * Runs for every packet that leaves by a device of the pod, and again where the packet enters the node, out of the pod's
 * reach: one program a pod and place, with the pod's cookie loaded as a constant. Whose a packet is, its socket says, which
 * a packet keeps on its way from one end of a link to the other.
 */
#include "egress.h"
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

/* To the next program, or on its way. The same number for tcx and for clsact. */
#define PASS TC_ACT_UNSPEC
#define DROP TC_ACT_SHOT

/* Set at load. */
const volatile __u64 cookie;  /* of the pod's network namespace */
const volatile __s32 netns;   /* the pod's network namespace, by the number that it has where this runs; -1: here */
const volatile bool on_node;  /* runs at the node's end of a link */
const volatile bool last;     /* what passes here, no other guard of the pod sees */
const volatile bool ethernet; /* what passes begins with an Ethernet header; else with IP's */

/* A packet that is TCP's, as far as it was read. */
struct segment {
	struct flow flow; /* as who sent the packet sees it */
	bool ip4;
	bool opens; /* SYN and ACK, without data */
};

static __always_inline int end(enum verdict verdict, int answer)
{
	count(verdict);
	return answer;
}

/* What never carries TCP in clear text as its payload: TCP in UDP is somebody's tunnel. */
static __always_inline bool is_not_tcp(__u8 protocol)
{
	return protocol == IPPROTO_UDP || protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6 ||
	       protocol == IPPROTO_IGMP || protocol == IPPROTO_UDPLITE || protocol == IPPROTO_SCTP;
}

static __always_inline enum verdict read_tcp(struct __sk_buff *skb, __u32 offset, struct segment *segment)
{
	struct tcphdr tcp;

	if (bpf_skb_load_bytes(skb, offset, &tcp, sizeof(tcp)))
		return VERDICT_GUARD_DROPPED_UNREADABLE;
	segment->flow.source_port = tcp.source;
	segment->flow.destination_port = tcp.dest;
	segment->opens = tcp.syn && tcp.ack && skb->len == offset + tcp.doff * 4;
	return VERDICT_COUNT;
}

/* Each of these returns VERDICT_COUNT for a segment that was read, and else what is to become of the packet. */
static __always_inline enum verdict read_ip4(struct __sk_buff *skb, __u32 offset, struct segment *segment)
{
	struct iphdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 4)
		return VERDICT_GUARD_DROPPED_UNREADABLE;
	if (is_not_tcp(ip.protocol))
		return VERDICT_GUARD_NOT_TCP;
	if (ip.protocol != IPPROTO_TCP)
		return VERDICT_GUARD_DROPPED_PROTOCOL;
	if (ip.ihl != sizeof(ip) / 4)
		return VERDICT_GUARD_DROPPED_OPTIONS;
	if (ip.frag_off & bpf_htons(IP_MORE_FRAGMENTS_OR_OFFSET))
		return VERDICT_GUARD_DROPPED_FRAGMENT;
	segment->ip4 = true;
	addr_from4(&segment->flow.source, ip.saddr);
	addr_from4(&segment->flow.destination, ip.daddr);
	return read_tcp(skb, offset + sizeof(ip), segment);
}

/* What an extension header of one of two kinds says comes next: the kernel's own reports of multicast listeners bear the one,
 * long datagrams the other. Behind any other there may be anything. */
static __always_inline enum verdict read_extension(struct __sk_buff *skb, __u32 offset, __u8 kind)
{
	__u8 next;

	if (kind != IPPROTO_FRAGMENT6 && kind != IPPROTO_HOP_BY_HOP6)
		return VERDICT_GUARD_DROPPED_PROTOCOL;
	if (bpf_skb_load_bytes(skb, offset, &next, sizeof(next)))
		return VERDICT_GUARD_DROPPED_UNREADABLE;
	if (is_not_tcp(next))
		return VERDICT_GUARD_NOT_TCP;
	return kind == IPPROTO_FRAGMENT6 ? VERDICT_GUARD_DROPPED_FRAGMENT : VERDICT_GUARD_DROPPED_OPTIONS;
}

static __always_inline enum verdict read_ip6(struct __sk_buff *skb, __u32 offset, struct segment *segment)
{
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 6)
		return VERDICT_GUARD_DROPPED_UNREADABLE;
	if (is_not_tcp(ip.nexthdr))
		return VERDICT_GUARD_NOT_TCP;
	if (ip.nexthdr != IPPROTO_TCP)
		return read_extension(skb, offset + sizeof(ip), ip.nexthdr);
	__builtin_memcpy(&segment->flow.source, &ip.saddr, sizeof(segment->flow.source));
	__builtin_memcpy(&segment->flow.destination, &ip.daddr, sizeof(segment->flow.destination));
	return read_tcp(skb, offset + sizeof(ip), segment);
}

/* The header's word counts, not the kernel's: who sends by a packet socket says the one thing and writes the other. */
static __always_inline enum verdict read_packet(struct __sk_buff *skb, struct segment *segment)
{
	struct ethhdr header;
	__u8 version;

	if (skb->vlan_present)
		return VERDICT_GUARD_DROPPED_ETHERTYPE;
	if (!ethernet) {
		if (bpf_skb_load_bytes(skb, 0, &version, sizeof(version)))
			return VERDICT_GUARD_DROPPED_UNREADABLE;
		return version >> 4 == 4 ? read_ip4(skb, 0, segment) : read_ip6(skb, 0, segment);
	}
	if (bpf_skb_load_bytes(skb, 0, &header, sizeof(header)))
		return VERDICT_GUARD_DROPPED_UNREADABLE;
	if (header.h_proto == bpf_htons(ETH_P_IP))
		return read_ip4(skb, sizeof(header), segment);
	if (header.h_proto == bpf_htons(ETH_P_IPV6))
		return read_ip6(skb, sizeof(header), segment);
	return header.h_proto == bpf_htons(ETH_P_ARP) ? VERDICT_GUARD_NOT_TCP : VERDICT_GUARD_DROPPED_ETHERTYPE;
}

/* The connection's other end opened it: the key that permit has for it. */
static __always_inline void turn(const struct flow *flow, struct flow *turned)
{
	turned->source = flow->destination;
	turned->destination = flow->source;
	turned->source_port = flow->destination_port;
	turned->destination_port = flow->source_port;
}

static __always_inline bool is_answer_to_kubelet(const struct segment *segment)
{
	enum permit *permit;
	struct flow opened;

	turn(&segment->flow, &opened);
	permit = bpf_map_lookup_elem(&mesh_permits, &opened);
	return permit && *permit == PERMIT_KUBELET;
}

static __always_inline bool is_own(struct bpf_sock *sk)
{
	enum own *own = bpf_sk_storage_get(&mesh_own, sk, 0, 0);

	/* A delivery stays within the pod. */
	return own && *own == OWN_TUNNEL;
}

/* By the second segment of a handshake a listener answers, before there is a socket of the connection's own, and under SYN
 * cookies without any. */
static __always_inline bool is_handshake(struct __sk_buff *skb, const struct segment *segment)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *listener;
	__u32 size;
	bool own;

	/* What another namespace of the pod's making sends by way of this one has no socket either. */
	if (!segment->opens || (!on_node && skb->ingress_ifindex))
		return false;
	if (segment->ip4) {
		tuple.ipv4.saddr = segment->flow.destination.word[3];
		tuple.ipv4.daddr = segment->flow.source.word[3];
		tuple.ipv4.sport = segment->flow.destination_port;
		tuple.ipv4.dport = segment->flow.source_port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &segment->flow.destination, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, &segment->flow.source, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = segment->flow.destination_port;
		tuple.ipv6.dport = segment->flow.source_port;
		size = sizeof(tuple.ipv6);
	}
	listener = bpf_sk_lookup_tcp(skb, &tuple, size, (__u64)(__s64)netns, 0);
	if (!listener)
		return false;
	own = is_own(listener);
	bpf_sk_release(listener);
	return own;
}

/* The listed sockets, until their time is over; whoever runs then or not. */
static __always_inline bool is_precapture(struct __sk_buff *skb, const struct guard *guard)
{
	__u64 socket = bpf_get_socket_cookie(skb);
	__u64 *pod;

	if (!guard || !guard->grace || bpf_ktime_get_ns() >= guard->grace)
		return false;
	pod = bpf_map_lookup_elem(&mesh_precapture, &socket);
	return pod && *pod == cookie;
}

/* A tunnel's port is at one of the ends: its packets carry TLS. */
static __always_inline bool is_shut(const struct segment *segment, bool strict)
{
	struct tunnelled_key key = {
		.bits = 8 * (sizeof(key.destination) + sizeof(key.port)),
		.destination = segment->flow.destination,
		.port = segment->flow.destination_port,
	};
	enum tunnelled *tunnelled;

	if (segment->flow.destination_port == bpf_htons(PORT_HBONE) || segment->flow.source_port == bpf_htons(PORT_HBONE))
		return false;
	tunnelled = bpf_map_lookup_elem(&mesh_tunnelled, &key);
	return tunnelled && (strict || *tunnelled == TUNNELLED_BY_ALL);
}

static __always_inline bool is_arp(struct __sk_buff *skb)
{
	__u16 kind;

	return ethernet && !bpf_skb_load_bytes(skb, __builtin_offsetof(struct ethhdr, h_proto), &kind, sizeof(kind)) &&
	       kind == bpf_htons(ETH_P_ARP);
}

/* All other verdicts are reasons to drop. */
static __always_inline bool passes(enum verdict verdict)
{
	return verdict == VERDICT_GUARD_OWN || verdict == VERDICT_GUARD_KUBELET || verdict == VERDICT_GUARD_PRECAPTURE ||
	       verdict == VERDICT_GUARD_HANDSHAKE || verdict == VERDICT_GUARD_NOT_TCP || verdict == VERDICT_GUARD_NEIGHBOUR ||
	       verdict == VERDICT_GUARD_DNS || verdict == VERDICT_GUARD_EXCEPTED;
}

/* What is not TCP's, of a pod of whose way out something is said: strictness has no say in it. */
static __always_inline int answer_leaving(struct __sk_buff *skb, __u32 flags)
{
	enum verdict verdict = VERDICT_GUARD_DROPPED_UNREADABLE;
	struct leaving l = {};
	struct enrolment *pod;
	__u64 key = cookie;
	bool would, read;

	pod = bpf_map_lookup_elem(&mesh_enrolled, &key);
	read = read_leaving(skb, ethernet ? sizeof(struct ethhdr) : 0, pod, &l);
	would = flags & EGRESS_TRIED && (!read || !passes(leave(&l, pod, key, flags, on_node, ON_TRIAL)));
	if (flags & EGRESS_DENIED) {
		if (read)
			verdict = leave(&l, pod, key, flags, on_node, IN_FORCE);
		if (passes(verdict))
			return end(verdict, PASS);
		if (would)
			tell(key, &l);
		return end(verdict, DROP);
	}
	if (!would || !last)
		return end(VERDICT_GUARD_NOT_TCP, PASS);
	tell(key, &l);
	return end(VERDICT_GUARD_TRIED, PASS);
}

/* What may be TCP's, as of a pod that is strict or whose way out is denied. read is what became of reading it. */
static __always_inline enum verdict judge(struct __sk_buff *skb, struct bpf_sock *sk, const struct guard *guard,
					  const struct segment *segment, enum verdict read, bool own_listener, bool strict)
{
	if (read != VERDICT_COUNT)
		return read;
	/* A listener resets what belongs to no connection. Peers have to learn so that a tunnel has ended; but the plaintext listener
	 * would do the same, in the pod's name, for what ztunnel sent to a connection that the application has closed. */
	if (own_listener && (segment->opens || segment->flow.source_port == bpf_htons(PORT_HBONE)))
		return VERDICT_GUARD_OWN;
	if (is_answer_to_kubelet(segment))
		return VERDICT_GUARD_KUBELET;
	if (sk && is_precapture(skb, guard))
		return VERDICT_GUARD_PRECAPTURE;
	if (sk)
		return VERDICT_GUARD_DROPPED_FOREIGN_SOCKET;
	if (is_handshake(skb, segment))
		return is_shut(segment, strict) ? VERDICT_GUARD_DROPPED_PLAINTEXT : VERDICT_GUARD_HANDSHAKE;
	return VERDICT_GUARD_DROPPED_NO_SOCKET;
}

/* Tells of what judge would not let pass, if the way out were denied. */
static __always_inline void tell_judged(struct __sk_buff *skb, enum verdict verdict)
{
	struct leaving l = {};

	if (verdict != VERDICT_GUARD_DROPPED_ETHERTYPE)
		read_leaving(skb, ethernet ? sizeof(struct ethhdr) : 0, 0, &l);
	tell(cookie, &l);
}

SEC("tc")
int guard_tc(struct __sk_buff *skb)
{
	struct segment segment = {};
	struct guard *guard;
	bool own_listener = false;
	bool strict, denied, tried, would;
	enum verdict verdict;
	struct bpf_sock *sk;
	__u64 key = cookie;
	__u32 *egress;
	__u32 flags;
	bool own;

	guard = bpf_map_lookup_elem(&mesh_guards, &key);
	egress = bpf_map_lookup_elem(&mesh_egress, &key);
	flags = egress ? *egress : 0;
	strict = guard && guard->flags & GUARD_STRICT;
	denied = flags & EGRESS_DENIED;
	tried = flags & EGRESS_TRIED;
	sk = skb->sk;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	own = sk && is_own(sk);
	if (!strict && !denied && !tried && !own)
		return end(VERDICT_GUARD_PERMISSIVE, PASS);
	verdict = read_packet(skb, &segment);
	if (sk && own) {
		if (verdict == VERDICT_COUNT && is_shut(&segment, strict))
			return end(VERDICT_GUARD_DROPPED_PLAINTEXT, DROP);
		own_listener = sk->state == BPF_TCP_LISTEN;
		/* A connection's packets are what the kernel makes of them, also where a device has added what cannot be read here; those
		 * of a raw socket are what was written. */
		if (!own_listener && (verdict == VERDICT_COUNT || verdict == VERDICT_GUARD_NOT_TCP || sk->type == SOCK_STREAM))
			return end(VERDICT_GUARD_OWN, PASS);
	}
	if (!strict && !denied && !tried)
		return end(VERDICT_GUARD_PERMISSIVE, PASS);
	if (verdict == VERDICT_GUARD_NOT_TCP && (denied || tried) && !is_arp(skb))
		return answer_leaving(skb, flags);
	verdict = judge(skb, sk, guard, &segment, verdict, own_listener, strict);
	/* What strictness drops is its own affair, and so is what ztunnel must not send. */
	would = tried && !strict && !passes(verdict) && verdict != VERDICT_GUARD_DROPPED_PLAINTEXT;
	if (strict || denied) {
		if (would)
			tell_judged(skb, verdict);
		return end(verdict, passes(verdict) ? PASS : DROP);
	}
	if (!would || !last)
		return end(VERDICT_GUARD_PERMISSIVE, PASS);
	tell_judged(skb, verdict);
	return end(VERDICT_GUARD_TRIED, PASS);
}

/* No map names this type; a variable keeps it in the BTF, from which its Go twin is generated. */
const enum guard_flag *guard_flag_in_btf __attribute__((unused));
const enum egress_flag *egress_flag_in_btf __attribute__((unused));

char _license[] SEC("license") = "GPL";
