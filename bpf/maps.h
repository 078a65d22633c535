/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The maps. Each object declares all of them; Go creates them once and hands them to every program. */
#pragma once

#include "mesh.h"

/* A captured pod. An absent address is all zero. */
struct enrolment {
	struct addr self4;
	struct addr self6;
	__u8 uid[UID_SIZE]; /* for user space alone: which pod this namespace belongs to */
};
_Static_assert(sizeof(struct enrolment) == 32 + UID_SIZE, "no padding in a pinned map");

/* Network namespace cookie -> pod whose connects are captured. Written by Go: the last step of enrolling, the first of
 * letting go. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PODS);
	__type(key, __u64);
	__type(value, struct enrolment);
} mesh_enrolled SEC(".maps");

/* Address of a captured pod -> cookie of its namespace. Written by Go. Two addresses a pod. An entry that a process left
 * behind does no harm. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * MAX_PODS);
	__type(key, struct addr);
	__type(value, __u64);
} mesh_pods SEC(".maps");

/* Socket -> enum own. Written by Go on sockets it holds, which pods cannot do, and OWN_KUBELET by connect; ends with the
 * socket, and is passed on by a listener to what it accepts. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, enum own);
} mesh_own SEC(".maps");

/* Connection that may reach the application past the pod's listeners -> enum permit. Written by permit. steer needs it during the handshake, guard as long as the application answers: it is used then, and the
 * least recently used may go. One entry for each connection of the node to its own pods. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow);
	__type(value, enum permit);
} mesh_permits SEC(".maps");

/* What holds for the node as a whole. */
struct node {
	__u64 host;		      /* cookie of the node's network namespace: whose these maps are */
	__u32 layout;		      /* the version of what is pinned; this and host stay where they are in every one */
	__u32 flags;		      /* enum node_flag */
	__u64 kubelets[MAX_KUBELETS]; /* ids of the cgroups that the kubelet is in; zero: none */
};
_Static_assert(sizeof(struct node) == 16 + 8 * MAX_KUBELETS, "no padding in a pinned map");

/* 0 -> struct node. Written by Go. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct node);
} mesh_node SEC(".maps");

/* Network namespace cookie -> enum class. Written by Go: looked at for namespaces that are not captured. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * MAX_PODS);
	__type(key, __u64);
	__type(value, enum class);
} mesh_classes SEC(".maps");

/* What may leave a captured pod. */
struct guard {
	__u32 flags; /* enum guard_flag */
	__u32 unused;
	__u64 grace; /* CLOCK_MONOTONIC, nanoseconds: until then what is in mesh_precapture leaves too */
};
_Static_assert(sizeof(struct guard) == 16, "no padding in a pinned map");

/* Network namespace cookie -> what may leave it; everything, if there is none. Written by Go. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PODS);
	__type(key, __u64);
	__type(value, struct guard);
} mesh_guards SEC(".maps");

/* Cookie of a socket that was connected before its pod was captured -> cookie of the pod's namespace. Written by Go. A
 * socket's cookie is never given to another. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u64);
} mesh_precapture SEC(".maps");

/* A range of addresses, or one port of an address. */
struct tunnelled_key {
	__u32 bits; /* that count of what follows */
	struct addr destination;
	__u16 port; /* network byte order */
	__u16 none;
};
_Static_assert(sizeof(struct tunnelled_key) == 24, "no padding in a key");

/* Where ztunnel sends nothing of TCP but to or from a tunnel's port, whatever pod it is for -> enum tunnelled. The longest key
 * counts, and so a port before its address. Written by Go. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_TUNNELLED);
	__type(key, struct tunnelled_key);
	__type(value, enum tunnelled);
} mesh_tunnelled SEC(".maps");

/* Network namespace cookie -> bits of enum egress_flag; a pod whose way out of the mesh nothing is said about has none. Written
 * by Go. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PODS);
	__type(key, __u64);
	__type(value, __u32);
} mesh_egress SEC(".maps");

/* Ports in host byte order, both included. */
struct udp_range {
	__u16 first;
	__u16 last;
};

/* What may leave for some addresses, other than by TCP. */
struct allowance {
	__u32 every; /* packets of every protocol; else datagrams of UDP alone */
	__u32 count; /* of the ranges */
	struct udp_range udp[MAX_UDP_RANGES];
};
_Static_assert(sizeof(struct allowance) == 8 + 4 * MAX_UDP_RANGES, "no padding in a pinned map");

/* A range of addresses that a pod may send to. */
struct range_key {
	__u32 bits; /* that count of what follows */
	__u32 cookie[2];
	__u32 family; /* AF_INET and AF_INET6 have nothing in common */
	struct addr destination;
};
_Static_assert(sizeof(struct range_key) == 32, "no padding in a key");

/* Written by Go: of several ranges that an address is in the longest counts, and includes what the others allow. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DESTINATIONS);
	__type(key, struct range_key);
	__type(value, struct allowance);
} mesh_ranges SEC(".maps");

/* An address that a name has which a pod may send to. */
struct name_key {
	__u64 cookie;
	struct addr destination;
};
_Static_assert(sizeof(struct name_key) == 24, "no padding in a key");

struct name {
	__u64 ends; /* CLOCK_MONOTONIC, nanoseconds */
	struct allowance allowance;
};

/* Written by Go; by guard, which puts the end off while it is used. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DESTINATIONS);
	__type(key, struct name_key);
	__type(value, struct name);
} mesh_names SEC(".maps");

/* What may leave by policies on trial and those in force together: as mesh_ranges and mesh_names, and nothing is dropped by them.
 * Apart, so that a trial takes no room from what is in force. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DESTINATIONS);
	__type(key, struct range_key);
	__type(value, struct allowance);
} mesh_try_ranges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_DESTINATIONS);
	__type(key, struct name_key);
	__type(value, struct name);
} mesh_try_names SEC(".maps");

/* Where something goes that policies on trial would drop. */
struct tried_key {
	__u64 cookie;
	struct addr destination; /* none, if it cannot be read */
	__u16 port;		 /* of UDP and TCP, host byte order; else zero */
	__u8 protocol;		 /* IP's number */
	__u8 unused[5];
};
_Static_assert(sizeof(struct tried_key) == 32, "no padding in a key");

struct tried {
	__u64 packets;
	struct addr source; /* of the first */
};
_Static_assert(sizeof(struct tried) == 24, "no padding in a pinned map");

/* What policies on trial would have dropped since Go looked last. Written by guard, taken out by Go. Once it is full, what is not in
 * it is counted in mesh_tried_rest, so that a flood costs no more than counting. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_TRIED);
	__type(key, struct tried_key);
	__type(value, struct tried);
} mesh_tried SEC(".maps");

/* Network namespace cookie -> packets that found no room in mesh_tried. Written by guard, taken out by Go. Pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PODS);
	__type(key, __u64);
	__type(value, __u64);
} mesh_tried_rest SEC(".maps");

/* slot * SLOT_SIZE + enum listener -> listening socket. Written by Go, emptied by the kernel when a socket closes.
 * Not pinned: sockets do not outlive the process, and without them steer drops. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, MAX_PODS *SLOT_SIZE);
	__type(key, __u32);
	__type(value, __u64);
} mesh_listeners SEC(".maps");

/* struct held, one for each SYN that hold keeps. Written by hold, read by Go: room for some 1900, which a process that runs
 * empties in milliseconds. Not pinned: it is read by the process whose listeners are in mesh_listeners. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} mesh_held SEC(".maps");

/* enum verdict -> how often. Written by every program. Pinned, and so with room for verdicts to come. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_VERDICTS);
	__type(key, enum verdict);
	__type(value, __u64);
} mesh_verdicts SEC(".maps");
_Static_assert(VERDICT_COUNT <= MAX_VERDICTS, "every verdict has a counter");

/* 0 -> how many runs of programs ask which socket would take a packet, on this CPU: one may be put off by another. steer answers
 * that as ever, and counts it apart. It decides nothing, for a SYN may come between the question and its end. Not pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} mesh_asking SEC(".maps");

/* Begins a question, or ends it. */
static __always_inline void ask(int change)
{
	__u32 only = 0;
	__u32 *asking = bpf_map_lookup_elem(&mesh_asking, &only);

	if (asking)
		__sync_fetch_and_add(asking, change);
}

static __always_inline void count(enum verdict verdict)
{
	__u64 *value = bpf_map_lookup_elem(&mesh_verdicts, &verdict);

	if (value)
		*value += 1;
}
