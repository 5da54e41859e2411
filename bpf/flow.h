/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Flows and how they are approved.
 *
 * The hook where a packet enters (from_container, from_wire) signs what it leaves
 * to the kernel path: skb->hash becomes a keyed hash of flow and port. The hook
 * where it leaves netfilter (to_overlay, to_container) approves the flow only if
 * the signature matches what the packet says now. A packet that was translated, or
 * that never came through our port, does not match. The kernel keeps an L4 hash
 * over bridge, routing, NAT and the vxlan device, and derives the outer source port
 * from it, so both paths also use the same one.
 */
#ifndef OVNET_FLOW_H
#define OVNET_FLOW_H

#include "maps.h"
#include "parse.h"

struct l4 {
	__u32 header_len; /* for the size of GSO segments */
	__u8  control;    /* TCP SYN, FIN or RST */
};

/* Fill ports and `l4` from the header behind `ip`; 0 or why it cannot be bypassed. */
static __always_inline enum reason take_l4(struct cursor *cur, const struct iphdr *ip,
					   struct flow_key *key, struct l4 *l4)
{
	if (ip->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = take(cur, sizeof(*tcp));

		if (!tcp || tcp->doff < 5)
			return REASON_TRUNCATED;
		key->sport = tcp->source;
		key->dport = tcp->dest;
		l4->header_len = tcp->doff * 4;
		l4->control = tcp->syn | tcp->fin | tcp->rst;
		/* With none of these and no ACK it is of no connection (tcp_valid_flags of
		 * conntrack), so there is nothing to forget either. */
		return l4->control | tcp->ack ? 0 : REASON_TCP_CONTROL;
	}
	if (ip->protocol == IPPROTO_UDP) {
		struct udphdr *udp = take_udp(cur);

		/* conntrack calls a length that cannot be invalid. */
		if (!udp || bpf_ntohs(udp->len) < sizeof(*udp) ||
		    bpf_ntohs(udp->len) > bpf_ntohs(ip->tot_len) - sizeof(*ip))
			return REASON_TRUNCATED;
		key->sport = udp->source;
		key->dport = udp->dest;
		l4->header_len = sizeof(*udp);
		return 0;
	}
	if (ip->protocol == IPPROTO_ICMP) {
		struct icmphdr *icmp = take(cur, sizeof(*icmp));

		if (!icmp)
			return REASON_TRUNCATED;
		/* Errors belong to other flows: conntrack has to see them. */
		if (icmp->type != ICMP_ECHO && icmp->type != ICMP_ECHOREPLY)
			return REASON_PROTOCOL;
		key->sport = icmp->un.echo.id;
		key->dport = bpf_htons(icmp->type << 8 | icmp->code);
		l4->header_len = sizeof(*icmp);
		return 0;
	}
	return REASON_PROTOCOL;
}

/* The flow of a packet, and `l4` only if it is of one. 0, or why it cannot be bypassed. */
static __always_inline enum reason take_flow(struct cursor *cur, const struct iphdr *ip,
					     enum direction direction, __u32 ifindex,
					     struct flow_key *key, struct l4 *l4)
{
	struct l4 found = {};
	enum reason why = take_l4(cur, ip, key, &found);

	if (why)
		return why;
	/* What stands in the padding behind the packet is no header. */
	if (bpf_ntohs(ip->tot_len) < sizeof(*ip) + found.header_len)
		return REASON_TRUNCATED;
	*l4 = found;
	key->saddr = ip->saddr;
	key->daddr = ip->daddr;
	key->ifindex = ifindex;
	key->proto = ip->protocol;
	key->direction = direction;
	key->dscp = ip->tos >> 2;
	return 0;
}

/* Is an IP packet of `len` bytes larger than the overlay's MTU? A GSO packet counts as
 * its segments. */
static __always_inline int oversize(const struct node *self, const struct l4 *l4, __u32 len,
				    __u32 gso_size)
{
	if (gso_size)
		len = sizeof(struct iphdr) + l4->header_len + gso_size;
	return len > self->mtu;
}

/* Keyed 64-bit multiply-and-fold mix of all 20 bytes. Never 0, which means "none". */
static __always_inline __u32 flow_hash(const struct flow_key *key, __u64 seed)
{
	__u64 hash = ((__u64)key->saddr << 32 | key->daddr) ^ seed;

	hash = (hash ^ hash >> 32) * 0x9e3779b97f4a7c15ULL;
	hash ^= (__u64)key->sport << 48 | (__u64)key->dport << 32 | key->ifindex;
	hash = (hash ^ hash >> 29 ^ seed >> 32) * 0xbf58476d1ce4e5b9ULL;
	hash ^= (__u64)key->dscp << 16 | (__u64)key->proto << 8 | key->direction;
	hash = (hash ^ hash >> 32) * 0x94d049bb133111ebULL;
	return (__u32)(hash >> 32) | 1;
}

/* Where the approval of a flow is kept. */
static __always_inline struct flow_key place_of(const struct flow_key *key)
{
	struct flow_key place = *key;

	if (place.proto == IPPROTO_TCP)
		place.dscp = 0;
	return place;
}

/* The approval that a packet bypasses by. */
struct approval {
	struct flow *flow; /* 0: none is asked for */
	__u64 now_ns;      /* when it was looked at */
};

/* May this packet bypass? 0, or why not. Nothing is changed: the kernel may yet refuse to
 * change the packet, and then gets it as it came. */
static __always_inline enum reason check_approval(const struct node *self,
						  const struct flow_key *key,
						  struct approval *approval)
{
	struct flow_key place = place_of(key);
	struct flow *flow = flows.lookup(&place);
	__u64 now;

	if (!flow || flow->dscp != key->dscp)
		return REASON_FLOW_UNKNOWN;
	now = bpf_ktime_get_coarse_ns();
	/* Signed: another CPU's coarse clock may be a tick ahead. */
	if ((__s64)(now - flow->approved_ns) > (__s64)self->approval_ttl_ns)
		return REASON_FLOW_EXPIRED;
	approval->flow = flow;
	approval->now_ns = now;
	return 0;
}

/* That many packets have bypassed by it. */
static __always_inline void use_approval(const struct approval *approval, __u32 packets)
{
	struct flow *flow = approval->flow;

	if (!flow)
		return;
	flow->last_seen_ns = approval->now_ns;
	flow->packets += packets;
}

/* A connection opens or closes: its next packets have to be approved anew, on both
 * directions, because conntrack's state is about to change. */
static __always_inline void forget_flow(const struct flow_key *key)
{
	struct flow_key both = place_of(key);

	flows.delete(&both);
	both.saddr = key->daddr;
	both.daddr = key->saddr;
	both.sport = key->dport;
	both.dport = key->sport;
	both.direction = !key->direction;
	flows.delete(&both);
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

/* Approve the flow of a packet that has left netfilter, if it is what was signed. */
static __always_inline enum reason approve_flow(struct __sk_buff *skb, const struct node *self,
						const struct flow_key *key)
{
	struct flow_key place = place_of(key);
	struct flow *flow, fresh = {};
	__u64 now;

	if (skb->hash != flow_hash(key, self->flow_seed))
		return REASON_CHANGED;
	now = bpf_ktime_get_coarse_ns();
	flow = flows.lookup(&place);
	if (flow) {
		flow->dscp = key->dscp;
		flow->mark = skb->mark;
		flow->priority = skb->priority;
		flow->approved_ns = approval_start(self, key, flow, now);
		return REASON_LEARNED;
	}
	fresh.dscp = key->dscp;
	fresh.mark = skb->mark;
	fresh.priority = skb->priority;
	fresh.approved_ns = approval_start(self, key, 0, now);
	if (flows.update(&place, &fresh))
		return REASON_FLOWS_FULL;
	return REASON_LEARNED;
}

/* An ARP packet that came in through port `from`: who speaks for the address of a container of
 * another port has taken it over, for the bridge and its neighbour table. The agent hears of
 * that a moment later; from now on the kernel path knows better where the address is. */
static __always_inline void heed_arp(struct cursor *cur, __u32 from)
{
	struct arp *arp = take_arp(cur);
	struct endpoint *endpoint;

	if (!arp)
		return;
	endpoint = endpoint_of(arp->sender);
	if (endpoint && endpoint->ifindex != from)
		forget_endpoint(arp->sender);
}

/* The whole of a learning hook. */
static __always_inline enum reason learn(struct __sk_buff *skb, enum direction direction)
{
	struct cursor cur = cursor_of(skb, sizeof(struct ethhdr) + sizeof(struct iphdr) +
					   sizeof(struct tcphdr));
	struct node *self = this_node();
	struct flow_key key = {};
	struct endpoint *endpoint;
	struct l4 l4 = {};
	struct ethhdr *eth;
	enum reason why;
	struct iphdr *ip;

	if (!self)
		return REASON_NOT_CONFIGURED;
	eth = take_eth(&cur);
	if (!eth)
		return REASON_TRUNCATED;
	/* Flooded, so it also shows what comes from ports that have no programs (yet). */
	if (direction == DIR_IN && eth->h_proto == bpf_htons(ETH_P_ARP))
		heed_arp(&cur, skb->ingress_ifindex);
	if (self->bypass != BYPASS_LEARNED)
		return REASON_BYPASS_OFF;
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return REASON_NOT_IPV4;
	ip = take_ip(&cur);
	if (!ip)
		return REASON_TRUNCATED;
	/* Cheap and common: most of what a port sees is not the overlay's. */
	if (direction == DIR_IN && !peer_of(self, ip->saddr))
		return REASON_NOT_OVERLAY;
	why = ip_obstacle(ip, skb->len - sizeof(*eth));
	/* The TTL has been decremented on the way: 1 may still be delivered. */
	if (why && why != REASON_TTL)
		return why;
	endpoint = endpoint_of(direction == DIR_OUT ? ip->saddr : ip->daddr);
	if (!endpoint)
		return REASON_NO_ENDPOINT;
	/* Flooded, or delivered by the bridge to where the address is not (any more). */
	if (direction == DIR_IN && endpoint->ifindex != skb->ifindex)
		return REASON_CHANGED;
	why = take_flow(&cur, ip, direction, endpoint->ifindex, &key, &l4);
	if (why)
		return why;
	if (l4.control)
		return REASON_TCP_CONTROL;
	return approve_flow(skb, self, &key);
}

#endif
