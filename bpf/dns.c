// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0

//go:build ignore

/* What a pod asks DNS servers by datagram comes to ztunnel, whatever server it is and whatever socket asks: one program a pod,
 * with its addresses, cookie and slot loaded as constants.
 *
 * Runs for what leaves by a pod's interfaces. Such a packet turns round, marked, as if lo had received it: the route of what is
 * marked takes it in, and steer hands it to the listener. It takes no route or socket option that would be left when the
 * capture ends: a pod that is not enrolled any more asks its server itself, whether this program is still there or not.
 */
#include "maps.h"
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

/* To the next program, or on its way. The same number for tcx and for clsact. */
#define PASS TC_ACT_UNSPEC

#define LOOPBACK 1 /* the number of every namespace's lo */

#define IP_MORE_FRAGMENTS 0x2000
#define IP_FRAGMENT_OFFSET 0x1fff

/* Set at load. */
const volatile struct addr self4; /* the pod's addresses; all zero: has none */
const volatile struct addr self6;
const volatile __u32 slot;   /* in mesh_listeners */
const volatile __u64 cookie; /* of the pod's namespace */
const volatile bool has_mac; /* the interface's packets begin with an Ethernet header */

static __always_inline int end(enum verdict verdict, int answer)
{
	count(verdict);
	return answer;
}

/* Drops without a word to the sender, who repeats the question in its own time. As in hold.c. */
static __always_inline int keep(enum verdict verdict)
{
	return end(verdict, bpf_redirect(0, 0));
}

static __always_inline bool is_self(const struct addr *a)
{
	return !addr_is_none(a) && (addr_equal(a, &self4) || addr_equal(a, &self6));
}

static __always_inline long load(struct __sk_buff *skb, __u32 offset, void *to, __u32 size)
{
	return bpf_skb_load_bytes_relative(skb, offset, to, size, BPF_HDR_START_NET);
}

/* Returns the size of the IP header that UDP follows; 0: none, or not at its beginning. */
static __always_inline __u32 read_ip(struct __sk_buff *skb, struct addr *source, struct addr *destination, bool *fragment)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (load(skb, 0, &ip, sizeof(ip)) || ip.protocol != IPPROTO_UDP ||
		    ip.frag_off & bpf_htons(IP_FRAGMENT_OFFSET))
			return 0;
		*fragment = ip.frag_off & bpf_htons(IP_MORE_FRAGMENTS);
		addr_from4(source, ip.saddr);
		addr_from4(destination, ip.daddr);
		return ip.ihl * 4;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (load(skb, 0, &ip, sizeof(ip)) || ip.nexthdr != IPPROTO_UDP)
			return 0;
		__builtin_memcpy(source, &ip.saddr, sizeof(*source));
		__builtin_memcpy(destination, &ip.daddr, sizeof(*destination));
		return sizeof(ip);
	}
	return 0;
}

static __always_inline bool has_listener(void)
{
	__u32 key = slot * SLOT_SIZE + LISTENER_DNS;
	struct bpf_sock *sk = bpf_map_lookup_elem(&mesh_listeners, &key);

	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

SEC("tc")
int dns_egress(struct __sk_buff *skb)
{
	struct addr source = {}, destination = {};
	unsigned char no_mac[ETH_ALEN] = {};
	bool fragment = false;
	__u64 of = cookie;
	struct udphdr udp;
	__u32 ip_size;

	ip_size = read_ip(skb, &source, &destination, &fragment);
	if (!ip_size || load(skb, ip_size, &udp, sizeof(udp)) || udp.dest != bpf_htons(PORT_DNS))
		return end(VERDICT_DNS_NOT_DNS, PASS);
	if (!bpf_map_lookup_elem(&mesh_enrolled, &of))
		return end(VERDICT_DNS_NOT_ENROLLED, PASS);
	/* steer would not know it for the pod's: of a second network, or a host's that the pod forwards for. */
	if (!is_self(&source) || addr_is_link_local6(&destination))
		return end(VERDICT_DNS_FOREIGN, PASS);
	/* Nobody's question is that long, and without its end it cannot be answered. */
	if (fragment)
		return keep(VERDICT_DNS_DROPPED_FRAGMENT);
	/* The next ztunnel answers when the question is repeated. */
	if (!has_listener())
		return keep(VERDICT_DNS_DROPPED_NO_LISTENER);
	/* For another's address lo would take it for another host's. */
	if (has_mac && bpf_skb_store_bytes(skb, 0, no_mac, sizeof(no_mac), 0))
		return keep(VERDICT_DNS_DROPPED_REWRITE);
	skb->mark = MARK;
	return end(VERDICT_DNS_CAPTURED, bpf_redirect(LOOPBACK, BPF_F_INGRESS));
}

char _license[] SEC("license") = "GPL";
