/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What may leave a pod whose way out of the mesh is denied, other than by TCP, and what is told of policies on trial: part of guard. */
#pragma once

#include "maps.h"
#include <linux/icmpv6.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

/* How long an address of a name is good for after it was last used. */
#define NAME_IDLE (30 * 1000000000ULL)

#define IPPROTO_HOP_BY_HOP6 0

/* linux/ip.h does not have them. */
#define IPPROTO_FRAGMENT6 44
#define IP_MORE_FRAGMENTS_OR_OFFSET 0x3fff

/* RFC 4861 section 7.1: what was forwarded is no message between neighbours. */
#define NEIGHBOUR_HOPS 255

/* A packet that wants to leave, as far as it was read. */
struct leaving {
	struct addr source;
	struct addr destination;
	__u32 family;
	__u16 port; /* of UDP and TCP, host byte order; else zero */
	__u8 protocol;
	bool udp;	/* with a port */
	bool neighbour; /* what neighbours say to each other */
};

/* By whose word something may leave: that of the policies in force, or of those on trial together with them. */
enum table { IN_FORCE, ON_TRIAL };

static __always_inline bool allows(const struct allowance *a, const struct leaving *l)
{
	if (a->every)
		return true;
	if (!l->udp)
		return false;
#pragma unroll
	for (int i = 0; i < MAX_UDP_RANGES; i++) {
		if ((__u32)i >= a->count)
			return false;
		if (a->udp[i].first <= l->port && l->port <= a->udp[i].last)
			return true;
	}
	return false;
}

static __always_inline bool is_excepted(__u64 cookie, const struct leaving *l, enum table table)
{
	struct name_key name_key = { .cookie = cookie, .destination = l->destination };
	struct range_key range_key = {
		.bits = 8 * (sizeof(struct range_key) - sizeof(__u32)),
		.cookie = { (__u32)cookie, (__u32)(cookie >> 32) },
		.family = l->family,
		.destination = l->destination,
	};
	struct allowance *range;
	struct name *name;
	__u64 now;

	name = table == IN_FORCE ? bpf_map_lookup_elem(&mesh_names, &name_key) : bpf_map_lookup_elem(&mesh_try_names, &name_key);
	if (name && allows(&name->allowance, l)) {
		now = bpf_ktime_get_ns();
		if (now < name->ends) {
			if (name->ends < now + NAME_IDLE)
				name->ends = now + NAME_IDLE;
			return true;
		}
	}
	range = table == IN_FORCE ? bpf_map_lookup_elem(&mesh_ranges, &range_key) : bpf_map_lookup_elem(&mesh_try_ranges, &range_key);
	return range && allows(range, l);
}

/* What neighbours say to each other, without which nothing can be sent at all. What goes to all neighbours, routers do not pass
 * on; to one of them the pod may say where itself is. */
static __always_inline bool is_neighbourly(struct __sk_buff *skb, __u32 offset, const struct ipv6hdr *ip, const struct enrolment *pod)
{
	bool all = ip->daddr.in6_u.u6_addr8[0] == 0xff && ip->daddr.in6_u.u6_addr8[1] == 0x02;
	bool local = ip->daddr.in6_u.u6_addr8[0] == 0xfe && (ip->daddr.in6_u.u6_addr8[1] & 0xc0) == 0x80;
	struct {
		struct icmp6hdr header;
		struct addr target;
	} message;
	__u8 type, next;

	if (ip->nexthdr == IPPROTO_HOP_BY_HOP6 && all) { /* reports of listeners (RFC 3810 section 5) */
		if (bpf_skb_load_bytes(skb, offset, &next, sizeof(next)) || next != IPPROTO_ICMPV6 ||
		    bpf_skb_load_bytes(skb, offset + 8, &type, sizeof(type)))
			return false;
		return (type >= 130 && type <= 132) || type == 143;
	}
	if (ip->nexthdr != IPPROTO_ICMPV6 || ip->hop_limit != NEIGHBOUR_HOPS ||
	    bpf_skb_load_bytes(skb, offset, &type, sizeof(type)))
		return false;
	if (all || local)
		return type == 133 || type == 135 || type == 136; /* solicitations and advertisements */
	if (type != 136 || ip->payload_len != bpf_htons(sizeof(message) + 8) || !pod ||
	    bpf_skb_load_bytes(skb, offset, &message, sizeof(message)))
		return false;
	return !addr_is_none(&pod->self6) && addr_equal(&message.target, &pod->self6);
}

static __always_inline void read_port(struct __sk_buff *skb, __u32 offset, struct leaving *l)
{
	struct udphdr udp; /* TCP's begins with the same ports */

	if ((l->protocol != IPPROTO_UDP && l->protocol != IPPROTO_TCP) || bpf_skb_load_bytes(skb, offset, &udp, sizeof(udp)))
		return;
	l->udp = l->protocol == IPPROTO_UDP;
	l->port = bpf_ntohs(udp.dest);
}

/* at is where IP begins. */
static __always_inline bool read_leaving(struct __sk_buff *skb, __u32 at, const struct enrolment *pod, struct leaving *l)
{
	__u8 version;

	if (bpf_skb_load_bytes(skb, at, &version, sizeof(version)))
		return false;
	if (version >> 4 == 4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
			return false;
		l->family = AF_INET;
		l->protocol = ip.protocol;
		addr_from4(&l->source, ip.saddr);
		addr_from4(&l->destination, ip.daddr);
		/* Only the first fragment has ports, and without the others it is worth nothing. */
		if (!(ip.frag_off & bpf_htons(IP_MORE_FRAGMENTS_OR_OFFSET)))
			read_port(skb, at + ip.ihl * 4, l);
		return true;
	}
	if (version >> 4 == 6) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
			return false;
		l->family = AF_INET6;
		l->protocol = ip.nexthdr;
		l->neighbour = is_neighbourly(skb, at + sizeof(ip), &ip, pod);
		__builtin_memcpy(&l->source, &ip.saddr, sizeof(l->source));
		__builtin_memcpy(&l->destination, &ip.daddr, sizeof(l->destination));
		read_port(skb, at + sizeof(ip), l);
		if (ip.nexthdr == IPPROTO_FRAGMENT6) /* of what; the header goes on as read_extension has it */
			bpf_skb_load_bytes(skb, at + sizeof(ip), &l->protocol, sizeof(l->protocol));
		return true;
	}
	return false;
}

/* For a packet that is surely not TCP's. */
static __always_inline enum verdict leave(const struct leaving *l, const struct enrolment *pod, __u64 cookie, __u32 flags, bool on_node,
					  enum table table)
{
	if (l->neighbour)
		return VERDICT_GUARD_NEIGHBOUR;
	/* dns.c comes after, and by the conditions that it has. What it leaves alone does not get past the node's end of the link. */
	if (flags & EGRESS_DNS && !on_node && l->udp && l->port == PORT_DNS && pod && !addr_is_link_local6(&l->destination) &&
	    (addr_equal(&l->source, &pod->self4) || addr_equal(&l->source, &pod->self6)))
		return VERDICT_GUARD_DNS;
	return is_excepted(cookie, l, table) ? VERDICT_GUARD_EXCEPTED : VERDICT_GUARD_DROPPED_EGRESS;
}

/* Counts what policies on trial would have dropped, apart from other such things as long as there is room. */
static __always_inline void tell(__u64 cookie, const struct leaving *l)
{
	struct tried_key key = { .cookie = cookie, .destination = l->destination, .port = l->port, .protocol = l->protocol };
	struct tried first = { .packets = 1, .source = l->source };
	__u64 one = 1, *rest;
	struct tried *tried;

	tried = bpf_map_lookup_elem(&mesh_tried, &key);
	if (!tried) {
		if (!bpf_map_update_elem(&mesh_tried, &key, &first, BPF_NOEXIST))
			return;
		tried = bpf_map_lookup_elem(&mesh_tried, &key); /* another processor was first, or there is no room */
	}
	if (tried) {
		__sync_fetch_and_add(&tried->packets, 1);
		return;
	}
	if (!bpf_map_update_elem(&mesh_tried_rest, &cookie, &one, BPF_NOEXIST))
		return;
	rest = bpf_map_lookup_elem(&mesh_tried_rest, &cookie);
	if (rest)
		__sync_fetch_and_add(rest, 1);
}
