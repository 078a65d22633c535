/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What may leave a pod whose way out of the mesh is denied, other than by TCP: part of guard. */
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

/* RFC 4861 section 7.1: what was forwarded is no message between neighbours. */
#define NEIGHBOUR_HOPS 255

/* A packet that is not TCP's, as far as it was read. */
struct leaving {
	struct addr source;
	struct addr destination;
	__u32 family;
	bool udp;   /* with a port */
	__u16 port; /* host byte order */
};

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

static __always_inline bool is_excepted(__u64 cookie, const struct leaving *l)
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

	name = bpf_map_lookup_elem(&mesh_names, &name_key);
	if (name && allows(&name->allowance, l)) {
		now = bpf_ktime_get_ns();
		if (now < name->ends) {
			if (name->ends < now + NAME_IDLE)
				name->ends = now + NAME_IDLE;
			return true;
		}
	}
	range = bpf_map_lookup_elem(&mesh_ranges, &range_key);
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
	struct udphdr udp;

	if (bpf_skb_load_bytes(skb, offset, &udp, sizeof(udp)))
		return;
	l->udp = true;
	l->port = bpf_ntohs(udp.dest);
}

/* For a packet that is surely not TCP's. at is where IP begins. */
static __always_inline enum verdict leave(struct __sk_buff *skb, __u32 at, __u64 cookie, __u32 flags, bool on_node)
{
	struct enrolment *pod = bpf_map_lookup_elem(&mesh_enrolled, &cookie);
	struct leaving l = {};
	__u8 version;

	if (bpf_skb_load_bytes(skb, at, &version, sizeof(version)))
		return VERDICT_GUARD_DROPPED_UNREADABLE;
	if (version >> 4 == 4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
			return VERDICT_GUARD_DROPPED_UNREADABLE;
		l.family = AF_INET;
		addr_from4(&l.source, ip.saddr);
		addr_from4(&l.destination, ip.daddr);
		/* Only the first fragment has ports, and without the others it is worth nothing. */
		if (ip.protocol == IPPROTO_UDP && !(ip.frag_off & bpf_htons(0x3fff)))
			read_port(skb, at + ip.ihl * 4, &l);
	} else if (version >> 4 == 6) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
			return VERDICT_GUARD_DROPPED_UNREADABLE;
		if (is_neighbourly(skb, at + sizeof(ip), &ip, pod))
			return VERDICT_GUARD_NEIGHBOUR;
		l.family = AF_INET6;
		__builtin_memcpy(&l.source, &ip.saddr, sizeof(l.source));
		__builtin_memcpy(&l.destination, &ip.daddr, sizeof(l.destination));
		if (ip.nexthdr == IPPROTO_UDP)
			read_port(skb, at + sizeof(ip), &l);
	} else {
		return VERDICT_GUARD_DROPPED_UNREADABLE;
	}
	/* dns.c comes after, and by the conditions that it has. What it leaves alone does not get past the node's end of the link. */
	if (flags & EGRESS_DNS && !on_node && l.udp && l.port == PORT_DNS && pod && !addr_is_link_local6(&l.destination) &&
	    (addr_equal(&l.source, &pod->self4) || addr_equal(&l.source, &pod->self6)))
		return VERDICT_GUARD_DNS;
	return is_excepted(cookie, &l) ? VERDICT_GUARD_EXCEPTED : VERDICT_GUARD_DROPPED_EGRESS;
}
