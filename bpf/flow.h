/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Flows and how they are approved.
 *
 * The hook where a packet enters (from_container, from_wire) signs what it leaves
 * to the kernel path: skb->hash becomes a keyed hash of flow and port. The hook
 * where it leaves netfilter (to_overlay, to_container) approves the flow only if
 * the signature matches what the packet says now. A packet that was translated, or
 * that never came through our port, does not match (what becomes of the first: translation.h).
 * The kernel keeps an L4 hash over bridge, routing, NAT and the vxlan device, and derives the
 * outer source port from it, so both paths also use the same one.
 */
#ifndef OVNET_FLOW_H
#define OVNET_FLOW_H

#include <linux/icmp.h>
#include <linux/tcp.h>

#include "ip.h"
#include "maps.h"
#include "outer_check.h"

struct l4 {
	__u64 fingerprint; /* of this packet, out of what a translation of addresses and ports leaves as it
			    * is. 0: none, the protocol is not translated */
	__u32 header_len;  /* for the size of GSO segments */
	__u8  control;     /* TCP SYN, FIN or RST */
	__u8  accepts;     /* TCP SYN and ACK: the answer to who opens a connection */
};

/* Fill ports and `l4` from the header behind `ip`. Why it cannot be bypassed, or NONE. */
static __always_inline enum reason take_l4(struct cursor *cur, const iphdr_t *ip,
					   struct flow_key *key, struct l4 *l4)
{
	if (proto_of(ip) == IPPROTO_TCP) {
		struct tcphdr *tcp = take(cur, sizeof(*tcp));

		if (!tcp || tcp->doff < 5)
			return REASON_TRUNCATED;
		key->sport = tcp->source;
		key->dport = tcp->dest;
		l4->header_len = tcp->doff * 4;
		l4->control = tcp->syn | tcp->fin | tcp->rst;
		l4->accepts = tcp->syn & tcp->ack;
		/* Other ones would be numbered by netfilter itself (SYNPROXY, an application's helper). */
		l4->fingerprint = (__u64)tcp->seq << 32 | tcp->ack_seq;
		/* With none of these and no ACK it is of no connection (tcp_valid_flags of
		 * conntrack), so there is nothing to forget either. */
		return l4->control | tcp->ack ? REASON_NONE : REASON_TCP_CONTROL;
	}
	if (proto_of(ip) == IPPROTO_UDP) {
		struct udphdr *udp = take_udp(cur);
		__u32 *data = take(cur, sizeof(*data));

		/* conntrack calls a length that cannot be invalid. */
		if (!udp || bpf_ntohs(udp->len) < sizeof(*udp) ||
		    bpf_ntohs(udp->len) > stated_len(ip) - sizeof(*ip))
			return REASON_TRUNCATED;
		/* Out of which the outer one would be computed. */
		if (OUTER_CHECKED && !is_summed(udp, ip))
			return REASON_OUTER_CHECKSUM;
		key->sport = udp->source;
		key->dport = udp->dest;
		l4->header_len = sizeof(*udp);
		l4->fingerprint = (__u64)ident_of(ip) << 48 | (__u64)udp->len << 32 | (data ? *data : 0);
		return REASON_NONE;
	}
	if (proto_of(ip) == IPPROTO_ECHO) {
		struct icmphdr *icmp = take(cur, sizeof(*icmp));

		if (!icmp)
			return REASON_TRUNCATED;
		/* Errors belong to other flows: conntrack has to see them. */
		if (icmp->type != ECHO_REQUEST && icmp->type != ECHO_REPLY)
			return REASON_PROTOCOL;
		key->sport = icmp->un.echo.id;
		key->dport = bpf_htons(icmp->type << 8 | icmp->code);
		l4->header_len = sizeof(*icmp);
		return REASON_NONE;
	}
	return REASON_PROTOCOL;
}

/* What has to be linear of a container's packet. */
#define INNER_LEN (sizeof(struct frame_header) + sizeof(struct tcphdr))

/* The approval that a packet bypasses by. */
struct approval {
	struct flow *flow; /* 0: none is asked for */
	__u64 now_ns;      /* when it was looked at */
	struct translation to;
};

/* A container's packet, which travels inside the tunnel, as far as it has been read. */
struct inner {
	iphdr_t *ip;
	struct flow_key key;
	__u32 hash; /* signature of its flow */
	struct l4 l4;
	struct approval approval;
};

/* The flow of `inner->ip`, of `len` bytes, through the port `ifindex`. Why it cannot be bypassed,
 * or NONE. */
static __always_inline enum reason take_flow(struct cursor *cur, enum direction direction,
					     __u32 ifindex, __u32 len, struct inner *inner)
{
	const iphdr_t *ip = inner->ip;
	struct flow_key *key = &inner->key;
	enum reason why = take_l4(cur, ip, key, &inner->l4);

	if (why)
		return why;
	/* What stands in the padding behind the packet is no header. */
	if (len < sizeof(*ip) + inner->l4.header_len)
		return REASON_TRUNCATED;
	key->saddr = addr_at(&ip->saddr);
	key->daddr = addr_at(&ip->daddr);
	key->ifindex = ifindex;
	key->proto = proto_of(ip);
	key->direction = direction;
	key->dscp = tos_of(ip) >> 2;
	return REASON_NONE;
}

/* Is an IP packet of `len` bytes larger than the overlay's MTU? A GSO packet counts as
 * its segments. */
static __always_inline int oversize(const struct node *self, const struct inner *inner,
				    __u32 len, __u32 gso_size)
{
	if (gso_size)
		len = sizeof(iphdr_t) + inner->l4.header_len + gso_size;
	return len > self->mtu;
}

/* Keyed 64-bit multiply-and-fold mix of all bytes. Never 0, which means "none". */
static __always_inline __u32 flow_hash(const struct flow_key *key, __u64 seed)
{
	__u64 hash = seed;

#pragma unroll
	for (int i = 0; i < ADDR_WORDS; i++) {
		hash ^= (__u64)key->saddr.word[i] << 32 | key->daddr.word[i];
		hash = (hash ^ hash >> 32) * 0x9e3779b97f4a7c15ULL;
	}
	hash ^= (__u64)key->sport << 48 | (__u64)key->dport << 32 | key->ifindex;
	hash = (hash ^ hash >> 29 ^ seed >> 32) * 0xbf58476d1ce4e5b9ULL;
	hash ^= (__u64)key->dscp << 16 | (__u64)key->proto << 8 | key->direction;
	hash = (hash ^ hash >> 32) * 0x94d049bb133111ebULL;
	return (__u32)(hash >> 32) | 1;
}

/* By which a flow's entry is known as whole, and its own: entries of an LRU map may become another
 * flow's between being found and being read, or be read while they are written. `hash`: the
 * signature. */
static __always_inline __u32 seal_of(__u32 hash, const struct translation *to)
{
	__u64 word = (__u64)fold_addr(&to->addr) << 32 | (__u32)to->sport << 16 | to->dport;

	return hash ^ (word * 0x9e3779b97f4a7c15ULL) >> 32;
}

/* Where the approval of a flow is kept. */
static __always_inline struct flow_key place_of(const struct flow_key *key)
{
	struct flow_key place = *key;

	if (place.proto == IPPROTO_TCP)
		place.dscp = 0;
	return place;
}

/* Does anything bypass in this node's mode? */
static __always_inline int bypasses(const struct node *self)
{
	return self->bypass == BYPASS_LEARNED || self->bypass == BYPASS_ALWAYS;
}

/* Is its flow approved? NONE, or why not. Nothing is changed: the kernel may yet refuse to
 * change the packet, and then gets it as it came. */
static __always_inline enum reason check_approval(const struct node *self, struct inner *inner)
{
	struct flow_key place = place_of(&inner->key);
	struct flow *flow = flows.lookup(&place);
	__u64 now;

	if (!flow)
		return REASON_FLOW_UNKNOWN;
	inner->approval.to = flow->to;
	if (flow->seal != seal_of(inner->hash, &inner->approval.to))
		return REASON_FLOW_UNKNOWN; /* of another DSCP, if it is no other flow's */
	now = bpf_ktime_get_coarse_ns();
	/* Signed: another CPU's coarse clock may be a tick ahead. */
	if ((__s64)(now - flow->approved_ns) > (__s64)self->approval_ttl_ns)
		return REASON_FLOW_EXPIRED;
	inner->approval.flow = flow;
	inner->approval.now_ns = now;
	return REASON_NONE;
}

/* May it bypass? NONE, or why not. */
static __always_inline enum reason may_bypass(const struct node *self, struct inner *inner)
{
	if (inner->l4.control)
		return REASON_TCP_CONTROL;
	return self->bypass == BYPASS_LEARNED ? check_approval(self, inner) : REASON_NONE;
}

/* The flow that a packet bypasses by, or 0. */
static __always_inline struct flow *flow_of(const struct inner *inner)
{
	struct flow *flow = inner->approval.flow;

	/* That there is one where there is a translation is what the compiler knows, and the
	 * verifier does not: left alone, it asks no more. */
	barrier_var(flow);
	return flow;
}

/* It has bypassed, as that many packets. */
static __always_inline void use_approval(const struct inner *inner, __u32 packets)
{
	struct flow *flow = flow_of(inner);

	if (!flow)
		return;
	flow->last_seen_ns = inner->approval.now_ns;
	flow->packets += packets;
}

/* By a packet that comes two seconds after the first, conntrack tells a lasting UDP flow from a
 * question with its answer: then the entry is assured, and kept for minutes
 * (nf_conntrack_udp_packet). It has to see that packet. */
#define UDP_STREAM_NS  2100000000ULL
#define UDP_TIMEOUT_NS 30000000000ULL /* how long it remembers one that is not assured */

/* The time from which the approval counts. A new flow of UDP has it dated back, so that it
 * ends as soon as that packet is due. */
static __always_inline __u64 approval_start(const struct node *self, const struct flow_key *key,
					    const struct flow *known, __u64 now)
{
	__u64 ttl = self->approval_ttl_ns;
	__s64 age = known ? now - known->approved_ns : 0;

	if (key->proto != IPPROTO_UDP || ttl <= UDP_STREAM_NS)
		return now;
	/* Several of the first packets are on their way at once: no reason to extend it. */
	if (known && age <= (__s64)ttl)
		return known->approved_ns;
	if (known && age < (__s64)(ttl + UDP_TIMEOUT_NS))
		return now;
	return now - (ttl - UDP_STREAM_NS);
}

/* Approve a flow whose packet has left netfilter, translated so. `hash`: its signature. NONE, or why
 * it could not be stored. */
static __always_inline enum reason approve_flow(const struct __sk_buff *skb, const struct node *self,
						const struct flow_key *key, __u32 hash,
						const struct translation *to)
{
	struct flow_key place = place_of(key);
	struct flow *flow = flows.lookup(&place), fresh = {};
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 seal = seal_of(hash, to);

	if (flow && flow->seal == seal) {
		flow->mark = skb->mark;
		flow->priority = skb->priority;
		flow->approved_ns = approval_start(self, key, flow, now);
		return REASON_NONE;
	}
	/* Another DSCP or another translation: never changed in place, where packets bypass by it. */
	fresh.packets = flow ? flow->packets : 0;
	fresh.to = *to;
	fresh.seal = seal;
	fresh.dscp = key->dscp;
	fresh.mark = skb->mark;
	fresh.priority = skb->priority;
	fresh.approved_ns = approval_start(self, key, 0, now);
	return flows.update(&place, &fresh) ? REASON_FLOWS_FULL : REASON_NONE;
}

#endif
