/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What becomes of packets, told one by one to whoever has asked (`ovctl trace --live`, `monitor`,
 * `capture`): as they leave a hook, whatever the verdict. While nobody asks it costs a look at one
 * word.
 */
#ifndef OVNET_TRACE_H
#define OVNET_TRACE_H

#include "maps.h"
#include "vxlan.h"

/* A packet as the filter sees it: its inner headers, and the host on the other end of the tunnel. */
struct sight {
	struct addr saddr;
	struct addr daddr;
	struct addr host;
	__be16 sport;
	__be16 dport;
	__u8   proto;
};

static __always_inline struct tracer *active_tracer(void)
{
	__u32 zero = 0;
	struct tracer *found = tracer.lookup(&zero);

	return found && found->until_ns ? found : 0;
}

/* TCP and UDP begin with both ports; of what has none, no port is asked for. */
static __always_inline void see_ip(struct cursor *cur, const iphdr_t *ip, struct sight *seen)
{
	__be16 *ports;

	seen->saddr = addr_at(&ip->saddr);
	seen->daddr = addr_at(&ip->daddr);
	seen->proto = proto_of(ip);
	if (has_options(ip) || is_later_fragment(ip) ||
	    (proto_of(ip) != IPPROTO_TCP && proto_of(ip) != IPPROTO_UDP))
		return;
	ports = take(cur, 2 * sizeof(*ports));
	if (!ports)
		return;
	seen->sport = ports[0];
	seen->dport = ports[1];
}

/* The IP header behind an Ethernet header, or (an uplink may have none) at the cursor; 0: none. */
static __always_inline iphdr_t *see_link(struct cursor *cur)
{
	struct cursor start = *cur;
	struct ethhdr *eth = take_eth(cur);
	iphdr_t *ip;

	if (!eth || eth->h_proto != bpf_htons(ETH_P_FAMILY))
		*cur = start;
	ip = take_ip(cur);
	return ip && ip->version == FAMILY ? ip : 0;
}

static __always_inline void see(const struct node *self, struct cursor *cur, struct sight *seen)
{
	iphdr_t *ip = see_link(cur);
	struct peer *peer;

	if (!ip)
		return;
	see_ip(cur, ip, seen);
	if (seen->proto != IPPROTO_UDP || seen->dport != self->port ||
	    (!same_addr(&seen->saddr, &self->host) && !same_addr(&seen->daddr, &self->host))) {
		peer = peer_of(self, seen->saddr);
		if (!peer)
			peer = peer_of(self, seen->daddr);
		if (peer)
			seen->host = peer->host;
		return;
	}
	seen->host = same_addr(&seen->saddr, &self->host) ? seen->daddr : seen->saddr;
	/* Behind the ports that see_ip() has taken: the rest of UDP, VXLAN. */
	if (!take(cur, sizeof(struct udphdr) - 2 * sizeof(__be16) + sizeof(struct vxlanhdr)))
		return;
	ip = see_link(cur);
	if (ip)
		see_ip(cur, ip, seen);
}

static __always_inline int ends_match(const struct tracer *tracer, const struct addr *from,
				      const struct addr *to, __be16 sport, __be16 dport)
{
	struct addr one = masked(from, &tracer->mask[0]), other = masked(to, &tracer->mask[1]);

	return same_addr(&one, &tracer->addr[0]) && same_addr(&other, &tracer->addr[1]) &&
	       (!tracer->port[0] || tracer->port[0] == sport) &&
	       (!tracer->port[1] || tracer->port[1] == dport);
}

/* Is it asked for? `cur`: at the packet's start, as it leaves. */
static __always_inline int is_traced(const struct tracer *tracer, struct cursor cur,
				     enum reason reason)
{
	struct node *self = this_node();
	struct sight seen = {};

	if (!(tracer->verdicts & 1 << verdict_of(reason)))
		return 0;
	/* What is none of the overlay's only if it is asked for: a terminal that shows packets
	 * may be far away, and each line makes some. */
	if (!tracer->narrow)
		return reason != REASON_NOT_OVERLAY;
	if (!self)
		return 0;
	see(self, &cur, &seen);
	if ((tracer->proto && tracer->proto != seen.proto) || (!is_none(&tracer->host) && !same_addr(&tracer->host, &seen.host)))
		return 0;
	return ends_match(tracer, &seen.saddr, &seen.daddr, seen.sport, seen.dport) ||
	       ends_match(tracer, &seen.daddr, &seen.saddr, seen.dport, seen.sport);
}

/* All of a trace but the packet's bytes. As with describe(), who calls reserves it and asks once. */
static __always_inline void describe_trace(struct trace *trace, enum hook hook, enum reason reason,
					   __u32 ifindex, __u32 came, __u32 leaves, __u64 now)
{
	trace->time_ns = now;
	trace->ifindex = ifindex;
	trace->came_len = came;
	trace->packet_len = leaves;
	trace->reason = reason;
	trace->hook = hook;
	__builtin_memset(trace->pad, 0, sizeof(trace->pad));
	trace->cpu = bpf_get_smp_processor_id();
}

static __always_inline void skip(struct tracer *tracer)
{
	lock_xadd(&tracer->skipped, 1);
}

/* Whose tracer has been killed is over by itself. */
static __always_inline int is_over(struct tracer *tracer, __u64 now)
{
	if (now < tracer->until_ns)
		return 0;
	tracer->until_ns = 0;
	return 1;
}

/* Copy the first `want` bytes of a packet, at least one and at most `room`; returns how many. */
static __always_inline __u16 copy_start(struct __sk_buff *skb, __u8 *data, __u32 want, __u32 room)
{
	__u64 rest = want - 1ULL; /* behind the first */

	if (rest > room - 1)
		rest = room - 1;
	/* The verifier wants to see a length of at least one in the register that is passed.
	 * An older one (6.1) learns nothing from a comparison with zero, so one is added;
	 * left alone, the compiler would take the one off again. */
	barrier_var(rest);
	return bpf_skb_load_bytes(skb, 0, data, rest + 1) ? 0 : rest + 1;
}

static __always_inline void tell(struct __sk_buff *skb, struct tracer *tracer, enum hook hook,
				 enum reason reason, __u32 came, __u64 now, __u32 want, __u32 room)
{
	struct trace *trace = traces.ringbuf_reserve(sizeof(*trace) + room);

	if (!trace) {
		skip(tracer);
		return;
	}
	describe_trace(trace, hook, reason, skb->ifindex, came, skb->len, now);
	trace->captured_len = copy_start(skb, trace->data, want, room);
	traces.ringbuf_submit(trace, 0);
}

/* `came`: the packet's length when it came to the hook. */
static __always_inline void trace(struct __sk_buff *skb, enum hook hook, enum reason reason, __u32 came)
{
	struct tracer *tracer = active_tracer();
	__u32 want;
	__u64 now;

	if (likely(!tracer))
		return;
	now = bpf_ktime_get_ns();
	if (is_over(tracer, now) || !is_traced(tracer, cursor(skb->data, skb->data_end), reason))
		return;
	want = skb->len < tracer->snaplen ? skb->len : tracer->snaplen;
	/* A record's size has to be known to the verifier: most are small. */
	if (want <= TRACE_SHORT)
		tell(skb, tracer, hook, reason, came, now, want, TRACE_SHORT);
	else
		tell(skb, tracer, hook, reason, came, now, want, TRACE_LONG);
}

#endif
