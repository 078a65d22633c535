/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What every decision shares: numbers, verdicts, addresses. */
#pragma once

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* <sys/socket.h> is user space's; these values are the kernel's ABI. */
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOL_SOCKET 1
#define SO_BINDTODEVICE 25
#define SO_MARK 36
#define IPPROTO_MULTIPATH_TCP 262

/* Numbers that C and Go must agree on. */
enum number {
	/* The mark on a captured socket, and on one that delivers to the app. Matched in full, never masked. */
	MARK = 0x539,
	/* Where other ztunnels connect. */
	PORT_HBONE = 15008,
	/* Where applications ask DNS servers. */
	PORT_DNS = 53,
	/* Pods of one node: Kubernetes recommends 110, the largest installations run 500. */
	MAX_PODS = 1024,
	/* Listeners of one pod in mesh_listeners: enum listener, and some to spare. */
	SLOT_SIZE = 8,
	/* Cgroups that hold all pods: one, or two where a kubelet was set up anew. */
	MAX_POD_CGROUPS = 4,
	/* Cgroups that a kubelet may be in: one; two while it moves. */
	MAX_KUBELETS = 4,
	/* Longest pod UID that is remembered, its terminating zero included. */
	UID_SIZE = 64,
	/* The longest headers of a SYN: 60 bytes of IPv4 and 60 of TCP. */
	SYN_SIZE = 120,
	/* Ranges of UDP ports that are told of one destination outside the mesh. */
	MAX_UDP_RANGES = 16,
	/* Destinations outside the mesh that are told of all pods together. */
	MAX_DESTINATIONS = 65536,
	/* What policies on trial would drop that is told apart until it is read, of all pods together. */
	MAX_TRIED = 4096,
	/* Addresses, and ports of some, that ztunnel reaches by tunnels alone: two of each of 65,536 pods. What is beyond, Go makes
	 * ranges of. */
	MAX_TUNNELLED = 131072,
	/* Counters in mesh_verdicts. */
	MAX_VERDICTS = 256,
};

/* A pod's entry in mesh_listeners is slot * SLOT_SIZE + one of these. */
enum listener {
	LISTENER_OUTBOUND = 0,
	LISTENER_PLAINTEXT = 1,
	LISTENER_HBONE = 2,
	LISTENER_DNS = 3,	  /* of datagrams: the only one that is not TCP's */
	LISTENER_DNS_STREAM = 4,
};

/* Value in mesh_permits: whose the connection is. */
enum permit {
	/* ztunnel's, to the application. What the application answers goes back to ztunnel, never to the wire. */
	PERMIT_DELIVERY = 1,
	/* The kubelet's: what the application answers goes to the wire. */
	PERMIT_KUBELET = 2,
};

/* Bits of struct node's flags. */
enum node_flag {
	/* What a pod connects to that nobody has classified is refused: it may be one that is to be captured. */
	NODE_REFUSES_UNCLASSIFIED = 1,
};

/* Value in mesh_classes: why a namespace that is not captured is let connect. */
enum class {
	/* ztunnel's own. */
	CLASS_ZTUNNEL = 1,
	/* Of a pod that is not enrolled. */
	CLASS_NOT_ENROLLED = 2,
};

/* Bits of struct guard's flags. */
enum guard_flag {
	/* TCP leaves the pod from ztunnel's sockets alone, and in answer to the node's. */
	GUARD_STRICT = 1,
};

/* Bits of the value in mesh_egress. */
enum egress_flag {
	/* Nothing but TCP, which ztunnel carries, leaves unless it is allowed. */
	EGRESS_DENIED = 1,
	/* What the pod asks DNS servers turns round at its devices. */
	EGRESS_DNS = 2,
	/* What would not leave by policies on trial is told of, and leaves for all that these say. */
	EGRESS_TRIED = 4,
};

/* Value in mesh_tunnelled: by whom the addresses are reached by tunnels alone. */
enum tunnelled {
	/* By every pod: a strict pod has the address, or refuses plaintext to the port. */
	TUNNELLED_BY_ALL = 1,
	/* By strict pods: a strict pod may have it, for all that the map has room for. */
	TUNNELLED_BY_STRICT = 2,
};

/* Value in mesh_own: whose the socket is, if not anyone's. */
enum own {
	OWN_NONE = 0,
	/* ztunnel's, to another node, another pod, or outside: never captured again, never let past a pod's listeners. */
	OWN_TUNNEL = 1,
	/* ztunnel's, to the application of the pod whose namespace it is in: let past that pod's listeners. */
	OWN_DELIVERY = 2,
	/* The kubelet's, to a captured pod: let past that pod's listeners, for probes. */
	OWN_KUBELET = 3,
};

/* How each run of each program ended: index into mesh_verdicts. Append only: the counters are pinned. */
enum verdict {
	VERDICT_CONNECT_NOT_ENROLLED = 0,
	VERDICT_CONNECT_KUBELET = 1,
	VERDICT_CONNECT_NOT_TCP = 2,
	VERDICT_CONNECT_OWN = 3,
	VERDICT_CONNECT_LOCAL = 4,
	VERDICT_CONNECT_LINK_LOCAL = 5,
	VERDICT_CONNECT_CAPTURED = 6,
	VERDICT_CONNECT_DENIED_TAG = 7,
	VERDICT_CONNECT_DENIED_NO_SOCKET = 8,
	VERDICT_CONNECT_DENIED_NO_ADDRESS = 9,
	VERDICT_CONNECT_DENIED_FOREIGN_SOURCE = 10,
	VERDICT_CONNECT_DENIED_UNBIND = 11,
	VERDICT_CONNECT_DENIED_MARK = 12,
	VERDICT_CONNECT_DENIED_TAKEN = 13,
	VERDICT_PERMIT_OTHER_CALLBACK = 14,
	VERDICT_PERMIT_NOT_OURS = 15,
	VERDICT_PERMIT_NOT_ENROLLED = 16,
	VERDICT_PERMIT_TUNNEL_PORT = 17,
	VERDICT_PERMIT_GRANTED = 18,
	VERDICT_PERMIT_REFUSED = 19,
	VERDICT_PERMIT_WITHDRAWN = 20,
	VERDICT_STEER_NOT_TCP = 21,
	VERDICT_STEER_LOCAL = 22,
	VERDICT_STEER_FOREIGN = 23,
	VERDICT_STEER_ASKED = 24,
	VERDICT_STEER_PERMITTED = 25,
	VERDICT_STEER_OUTBOUND = 26,
	VERDICT_STEER_PLAINTEXT = 27,
	VERDICT_STEER_HBONE = 28,
	VERDICT_STEER_DROPPED_OWN_PORT = 29,
	VERDICT_STEER_DROPPED_NO_LISTENER = 30,
	VERDICT_STEER_DROPPED_ASSIGN = 31,
	VERDICT_HOLD_NOT_CAPTURED = 32,
	VERDICT_HOLD_NOT_SYN = 33,
	VERDICT_HOLD_OWN = 34,
	VERDICT_HOLD_LOCAL = 35,
	VERDICT_HOLD_UNREADABLE = 36,
	VERDICT_HOLD_NO_LISTENER = 37,
	VERDICT_HOLD_FULL = 38,
	VERDICT_HOLD_HELD = 39,
	VERDICT_GUARD_PERMISSIVE = 40,
	VERDICT_GUARD_OWN = 41,
	VERDICT_GUARD_KUBELET = 42,
	VERDICT_GUARD_PRECAPTURE = 43,
	VERDICT_GUARD_HANDSHAKE = 44,
	VERDICT_GUARD_NOT_TCP = 45,
	VERDICT_GUARD_DROPPED_FOREIGN_SOCKET = 46,
	VERDICT_GUARD_DROPPED_NO_SOCKET = 47,
	VERDICT_GUARD_DROPPED_UNREADABLE = 48,
	VERDICT_GUARD_DROPPED_OPTIONS = 49,
	VERDICT_GUARD_DROPPED_FRAGMENT = 50,
	VERDICT_GUARD_DROPPED_PROTOCOL = 51,
	VERDICT_GUARD_DROPPED_ETHERTYPE = 52,
	VERDICT_HOLD_DNS = 53,
	VERDICT_STEER_DNS = 54,
	VERDICT_DNS_NOT_DNS = 55,
	VERDICT_DNS_NOT_ENROLLED = 56,
	VERDICT_DNS_FOREIGN = 57,
	VERDICT_DNS_CAPTURED = 58,
	VERDICT_DNS_DROPPED_FRAGMENT = 59,
	VERDICT_DNS_DROPPED_NO_LISTENER = 60,
	VERDICT_DNS_DROPPED_REWRITE = 61,
	VERDICT_GUARD_NEIGHBOUR = 62,
	VERDICT_GUARD_DNS = 63,
	VERDICT_GUARD_EXCEPTED = 64,
	VERDICT_GUARD_DROPPED_EGRESS = 65,
	VERDICT_CONNECT_CLASSIFIED = 66,
	VERDICT_CONNECT_DENIED_UNCLASSIFIED = 67,
	VERDICT_CONNECT_DENIED_NO_NODE = 68,
	VERDICT_CONNECT_DENIED_NOT_STEERED = 69,
	VERDICT_HOLD_DROPPED_RESET = 70,
	VERDICT_GUARD_DROPPED_PLAINTEXT = 71,
	VERDICT_GUARD_TRIED = 72,
	VERDICT_COUNT = 73,
};

/* An IPv6 address, or an IPv4 one as ::ffff:a.b.c.d, in network byte order. All zero: no address. */
struct addr {
	__u32 word[4];
};
_Static_assert(sizeof(struct addr) == 16, "an address has 16 bytes");

/* A TCP connection as its initiator sees it: ports in network byte order. */
struct flow {
	struct addr source;
	struct addr destination;
	__u16 source_port;
	__u16 destination_port;
};
_Static_assert(sizeof(struct flow) == 36, "no padding in a key");

/* A SYN that waits for ztunnel's answer: its headers as the application sent them, but for their checksums, which nobody
 * has computed yet. */
struct held {
	__u32 slot; /* of the pod, in mesh_listeners */
	__u32 size; /* of the headers */
	__u8 syn[SYN_SIZE];
};
_Static_assert(sizeof(struct held) == 8 + SYN_SIZE, "no padding in a record");

static __always_inline void addr_from4(struct addr *a, __u32 ip4)
{
	a->word[0] = 0;
	a->word[1] = 0;
	a->word[2] = bpf_htonl(0xffff);
	a->word[3] = ip4;
}

static __always_inline bool addr_equal(const volatile struct addr *a, const volatile struct addr *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

static __always_inline bool addr_is4(const volatile struct addr *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == bpf_htonl(0xffff);
}

static __always_inline bool addr_is_none(const volatile struct addr *a)
{
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == 0 && a->word[3] == 0;
}

/* 127.0.0.0/8 and ::1, and the unspecified addresses, which connect(2) takes for the local host. */
static __always_inline bool addr_is_loopback(const volatile struct addr *a)
{
	if (addr_is4(a))
		return a->word[3] == 0 || (a->word[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return a->word[0] == 0 && a->word[1] == 0 && a->word[2] == 0 &&
	       (a->word[3] == 0 || a->word[3] == bpf_htonl(1));
}

/* fe80::/10. */
static __always_inline bool addr_is_link_local6(const volatile struct addr *a)
{
	return (a->word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}
