/* SPDX-License-Identifier: GPL-2.0 */
/*
 * All maps, each with its only accessors; those of `flows` are in flow.h, of `notes`,
 * `translations` and `services` in translation.h, of `tracer` and `traces` in trace.h, of
 * `ipv6_programs` and `ipv6_xdp` in handover.h. Types and key sizes are declared again in ctl/kernel/bpf/maps.py, which creates and pins the real
 * maps (capacities are settings, so the 1s below mean nothing); a test compares the two.
 */
#ifndef OVNET_MAPS_H
#define OVNET_MAPS_H

#include "addr.h"
#include "reason.h"

/* Subnet of another node -> how to reach it. A hash, not a trie: all leases have
 * one prefix length, and a hash on the masked address costs 28 ns at 10,000
 * entries where the trie costs 100. */
BPF_F_TABLE("hash", struct addr, struct peer, peers, 1, 0);
/* Container IP -> its port. */
BPF_F_TABLE("hash", struct addr, struct endpoint, endpoints, 1, 0);
/* Flow through a port -> approval by the kernel path. */
BPF_F_TABLE("lru_hash", struct flow_key, struct flow, flows, 1, 0);
/* Signature -> packet from the wire that is in netfilter. */
BPF_F_TABLE("lru_hash", __u32, struct note, notes, 1, 0);
/* Flow as it enters netfilter (no DSCP) -> what was made of it when last seen. No approval: it only
 * says where to look. */
BPF_F_TABLE("lru_hash", struct flow_key, struct translation, translations, 1, 0);
/* Address outside of the overlay that netfilter has translated to a peer's container -> when. */
BPF_F_TABLE("lru_hash", struct addr, __u64, services, 1, 0);
/* 0 -> this node. */
BPF_F_TABLE("array", __u32, struct node, node, 1, 0);
/* hook * REASON_MAX + reason -> packets and bytes. */
BPF_F_TABLE("percpu_array", __u32, struct counter, counters, 1, 0);
/* Host IP of every peer -> its traffic. Being in here makes a host a known VTEP. */
BPF_F_TABLE("percpu_hash", struct addr, struct peer_stats, peer_stats, 1, 0);
/* Sampled drops. */
BPF_RINGBUF_OUTPUT(events, 1);
/* 0 -> which packets are told of in `traces`. */
BPF_F_TABLE("array", __u32, struct tracer, tracer, 1, BPF_F_MMAPABLE);
/* Packets, for a tracer. */
BPF_RINGBUF_OUTPUT(traces, 1);
#if FAMILY == 4
/* Hook -> the program for IPv6 that belongs there; a map of them has one type of program. */
BPF_F_TABLE("prog", __u32, __u32, ipv6_programs, 1, 0);
BPF_F_TABLE("prog", __u32, __u32, ipv6_xdp, 1, 0);
#endif

static __always_inline struct node *this_node(void)
{
	__u32 zero = 0;
	struct node *self = node.lookup(&zero);

	return self && !is_none(&self->host) ? self : 0;
}

static __always_inline struct peer *peer_of(const struct node *self, struct addr addr)
{
	struct addr subnet = masked(&addr, &self->subnet_mask);

	return peers.lookup(&subnet);
}

static __always_inline struct endpoint *endpoint_of(struct addr addr)
{
	return endpoints.lookup(&addr);
}

static __always_inline void forget_endpoint(struct addr addr)
{
	endpoints.delete(&addr);
}

static __always_inline struct peer_stats *stats_of(struct addr host)
{
	return peer_stats.lookup(&host);
}

static __always_inline struct counter *count(enum hook hook, enum reason reason, __u32 bytes,
					     __u32 packets)
{
	__u32 index = hook * REASON_MAX + reason;
	struct counter *counter = counters.lookup(&index);

	if (counter) {
		counter->packets += packets;
		counter->bytes += bytes;
	}
	return counter;
}

/* At most one event each 100 ms for a reason and CPU: a flood of bad packets must
 * not push the interesting ones out of the ring. */
#define EVENT_INTERVAL_NS 100000000ULL

/* Whether a drop is told now; if so, the next one is not for an interval. */
static __always_inline int is_sampled(struct counter *counter)
{
	__u64 now = bpf_ktime_get_ns();

	if (counter->sampled_ns && now - counter->sampled_ns < EVENT_INTERVAL_NS)
		return 0;
	counter->sampled_ns = now;
	return 1;
}

/* All of an event but the packet's bytes. Who calls reserves it, and asks once if that
 * went well: the verifier of 6.1 does not know that what is no null pointer stays none,
 * and takes a second question for a way on which the record is never given back. */
static __always_inline void describe(struct event *event, enum hook hook, enum reason reason,
				     __u32 ifindex, __u32 len, const struct counter *counter)
{
	event->time_ns = counter->sampled_ns;
	event->ifindex = ifindex;
	event->packet_len = len;
	event->reason = reason;
	event->hook = hook;
	event->captured_len = 0;
	event->pad = 0;
}

#endif
