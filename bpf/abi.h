/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs and user space agree on, byte for byte.
 *
 * Every struct here has a twin in ctl/core/abi.py; tests/bpf/test_abi.py compares
 * the two, field by field. A change of any size, offset or meaning needs a new
 * OVNET_LAYOUT: it is part of the name of the pin directory, so programs and
 * maps of two layouts never meet.
 *
 * Addresses and ports are in network byte order (__be*), the rest in host
 * order. Times are nanoseconds of CLOCK_MONOTONIC (coarse).
 */
#ifndef OVNET_ABI_H
#define OVNET_ABI_H

#include <linux/types.h>

/* The IP version that the text is compiled for is FAMILY, 4 or 6: programs and maps are about one. */
#if FAMILY != 4 && FAMILY != 6
#error "FAMILY is 4 or 6"
#endif

#define ADDR_WORDS (FAMILY == 6 ? 4 : 1)

struct addr {
	__be32 word[ADDR_WORDS];
};

/* An odd number of the longer ones leaves half of eight bytes. */
#define FAMILY_PAD (FAMILY == 6 ? 4 : 0)

/* The size of what has addresses in it. */
#define ABI_SIZE(name, ipv4, ipv6)                                                      \
	_Static_assert(sizeof(struct name) == (FAMILY == 6 ? (ipv6) : (ipv4)),          \
		       "struct " #name " is ABI")

#define OVNET_LAYOUT 7

/* Where a program runs. Append only, as the counters' places hang on it. */
enum hook {
	HOOK_FROM_CONTAINER = 0, /* tc ingress of a port */
	HOOK_TO_OVERLAY     = 1, /* tc egress of the vxlan device */
	HOOK_FROM_WIRE      = 2, /* tc ingress of the uplink */
	HOOK_TO_CONTAINER   = 3, /* tc egress of a port */
	HOOK_FROM_WIRE_XDP  = 4, /* XDP of the uplink, before from_wire */
	/* No places of their own, but counted as such: the tunnel gear, behind what to_overlay and
	 * from_wire have left to the kernel path. */
	HOOK_TUNNEL_OUT     = 5,
	HOOK_TUNNEL_IN      = 6,
	HOOK_MAX            = 8,
};

enum bypass_mode {
	BYPASS_OFF     = 0,
	BYPASS_LEARNED = 1,
	BYPASS_ALWAYS  = 2,
	BYPASS_TUNNEL  = 3, /* nothing bypasses: the tunnel gear alone */
};

enum direction {
	DIR_OUT = 0, /* container to overlay */
	DIR_IN  = 1, /* overlay to container */
};

/* peers: subnet of another node (masked with node.subnet_mask) -> peer */
struct peer {
	struct addr host;   /* outer destination, and the only outer source allowed;
			     * none: several hosts share the block (kernel path only) */
	__u8   vtep_mac[6]; /* inner destination MAC */
	__be16 port;        /* UDP port of its VTEP */
	__u32  vni;
	__u32  ifindex;     /* interface that leads to host */
	struct addr next_hop; /* neighbour on it; none: ask the FIB for each packet */
	__u32  flags;       /* PEER_F_* */
	__u8   ttl;         /* of the outer header */
	__u8   pad[3];
};
ABI_SIZE(peer, 32, 56);

/* No usable route, or something only the kernel can do: take its path. */
#define PEER_F_KERNEL_PATH (1U << 0)

/* endpoints: container IP -> where it is */
struct endpoint {
	__u32 ifindex;       /* its port */
	__u8  mac[6];
	__u8  bridge_mac[6]; /* source MAC the container expects of its gateway */
};
_Static_assert(sizeof(struct endpoint) == 16, "struct endpoint is ABI");

/* flows: a 5-tuple in one direction through one port -> approval */
struct flow_key {
	struct addr saddr;
	struct addr daddr;
	__be16 sport; /* ICMP echo: identifier */
	__be16 dport; /* ICMP echo: type and code */
	__u32  ifindex;
	__u8   proto;
	__u8   direction;
	__u8   dscp; /* a rule that rewrites it must go on seeing the packets. TCP: 0, see below */
	__u8   pad;
};
ABI_SIZE(flow_key, 20, 44);

/* What netfilter makes of the packets of a flow: the other end's address (of what a container sends
 * the destination, of what it gets the source) and both ports. That of the container stays. */
struct translation {
	struct addr addr; /* none: there is no translation */
	__be16 sport;
	__be16 dport;
};
ABI_SIZE(translation, 8, 20);

struct flow {
	__u64 approved_ns;  /* when the kernel path last carried a packet of it; less for new UDP */
	__u64 last_seen_ns; /* when a packet last bypassed */
	__u64 packets;      /* packets that bypassed since the first approval */
	__u32 mark;         /* skb->mark and skb->priority as the kernel path had set them */
	__u32 priority;
	struct translation to;
	__u32 seal;         /* of key and translation: seal_of() */
	__u8  dscp;         /* of the packets approved. TCP has one for each direction at a time, but not
			     * the same in both: in the key, the other direction would not be found
			     * when a connection ends */
	__u8  pad[3 + FAMILY_PAD];
};
ABI_SIZE(flow, 48, 64);

/* notes: signature -> a packet from the wire that has gone into netfilter with it */
struct note {
	__u64 noted_ns;    /* 0: it has come out, another may be noted */
	__u64 fingerprint; /* of this packet, out of what a translation does not change */
	struct flow_key key;
	__u8  pad[4];
};
ABI_SIZE(note, 40, 64);

/* node: index 0 -> this node */
struct node {
	__u64  approval_ttl_ns;
	__u64  flow_seed;       /* secret: keys the flow hashes */
	struct addr host;       /* our VTEP address, and outer source */
	struct addr network;    /* the whole overlay network: for people, the programs do not ask */
	struct addr network_mask;
	struct addr subnet;     /* the part of it leased to us */
	struct addr subnet_mask; /* prefix length of every lease, as a mask */
	struct addr pool_first; /* first and last address that leases are handed out from */
	struct addr pool_last;
	__u32  vni;
	__u32  uplink_ifindex;
	__u32  mtu;             /* largest inner IP packet, bytes */
	__u8   vtep_mac[6];
	__be16 port;            /* UDP port of our VTEP */
	__u16  source_port_min; /* range of the outer source port, host order */
	__u16  source_port_max;
	__u32  bypass;          /* enum bypass_mode */
	__u32  flags;           /* NODE_F_* */
	__u8   uplink_mac[6];   /* XDP has no pkt_type to tell it what is for this host */
	__u8   pad[2 + FAMILY_PAD];
	__u32  routing_marks;   /* bits of a mark by which `ip rule` may lead a packet elsewhere */
	__u32  tunnel_ifindex;  /* the vxlan device; 0: the tunnel gear is off */
	__u32  overlay_ifindex; /* the vxlan device, whatever the gear */
};
ABI_SIZE(node, 96, 184);

/* Not all peers fit the maps: who is in none of them may be a peer all the same. */
#define NODE_F_PEERS_INCOMPLETE (1U << 0)
/* XDP is in front of from_wire: for people, the programs do not ask. */
#define NODE_F_XDP (1U << 1)
/* The uplink is no Ethernet: what it receives may have no header in front of IP. */
#define NODE_F_NO_ETHERNET (1U << 2)
/* from_wire is before programs of others on the uplink: it checks, and passes all to them. */
#define NODE_F_OTHERS_BEHIND (1U << 3)

/* counters: hook * REASON_MAX + reason, per CPU -> counter */
struct counter {
	__u64 packets;
	__u64 bytes;
	__u64 sampled_ns; /* when an event was last sent for it */
};
_Static_assert(sizeof(struct counter) == 24, "struct counter is ABI");

/* peer_stats: host IP of a peer, per CPU -> traffic that eBPF carried */
struct peer_stats {
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 tx_packets;
	__u64 tx_bytes;
};
_Static_assert(sizeof(struct peer_stats) == 32, "struct peer_stats is ABI");

/* events: one sampled drop */
#define EVENT_BYTES 96
struct event {
	__u64 time_ns;
	__u32 ifindex;
	__u32 packet_len;   /* bytes of the whole packet */
	__u16 reason;       /* enum reason */
	__u8  hook;         /* enum hook */
	__u8  captured_len; /* bytes valid in data */
	__u8  data[EVENT_BYTES];
	__u32 pad;
};
_Static_assert(sizeof(struct event) == 120, "struct event is ABI");

/* tracer: index 0 -> which packets are told of in `traces`. User space has it in its memory, too,
 * so that it can set `until_ns` alone. */
struct tracer {
	__u64  until_ns;  /* 0, or passed: none */
	__u64  skipped;   /* packets for which there was no room in the ring */
	struct addr addr[2]; /* of the one end and of the other, inside, masked: whichever is the source */
	struct addr mask[2];
	__be16 port[2];   /* 0: any */
	struct addr host; /* at the other end of the tunnel; none: any */
	__u8   proto;     /* 0: any */
	__u8   verdicts;  /* bits 1 << enum verdict */
	__u16  snaplen;   /* most bytes of each packet, at least 1 */
	__u8   narrow;    /* 0: packets are not looked at, all of the overlay's with such a verdict are meant */
	__u8   pad[3 + FAMILY_PAD];
};
ABI_SIZE(tracer, 48, 112);

/* traces: a packet as it left a hook. `data` has room for one of these, whichever is enough. */
#define TRACE_SHORT 128
#define TRACE_LONG 2016
struct trace {
	__u64 time_ns;
	__u32 ifindex;
	__u32 came_len;     /* bytes of the packet when it came to the hook */
	__u32 packet_len;   /* and when it left */
	__u16 captured_len; /* bytes valid in data */
	__u16 reason;       /* enum reason */
	__u16 cpu;
	__u8  hook;         /* enum hook */
	__u8  pad[5];
	__u8  data[];
};
_Static_assert(sizeof(struct trace) == 32, "struct trace is ABI");

#endif
