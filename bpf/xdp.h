/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Decapsulation in XDP, before there is an skb, in two halves:
 *
 *   from_wire_xdp takes the tunnel off approved packets, leaves a note in front of them
 *   and passes them on to the stack, which merges them (GRO) as if they had come so;
 *   from_wire at tc ingress of the same device finds the note and delivers.
 *
 * What XDP does not bypass goes on to from_wire as it came: only there can it be signed.
 */
#ifndef OVNET_XDP_H
#define OVNET_XDP_H

#include "decap.h"
#include "trace.h"

/* The note, in the metadata area of the packet. GRO merges only packets whose metadata are
 * equal, so it says nothing that differs within a flow. Programs of two builds meet while
 * one replaces the other: a change of it needs a new OVNET_LAYOUT. */
struct delivery {
	__u32 key;           /* delivery_key() */
	__u32 ifindex;       /* where to */
	__u8  mac[6];        /* of the container */
	__u8  bridge_mac[6];
};
_Static_assert(sizeof(struct delivery) == 20, "at most 32 bytes, a multiple of 4");

/* Drivers and other programs write metadata, too: only who knows the node's secret can
 * have written this. */
static __always_inline __u32 delivery_key(const struct node *self, const struct delivery *note)
{
	__u64 hash = self->flow_seed ^ note->ifindex;

	hash = (hash ^ hash >> 32) * 0x9e3779b97f4a7c15ULL;
	hash = (hash ^ hash >> 29 ^ self->flow_seed >> 32) * 0xbf58476d1ce4e5b9ULL;
	return hash >> 32;
}

/* What XDP sees of a frame: its first piece, in which the headers are. The rest of a
 * jumbo frame lies in others, which only a program with BPF_F_XDP_HAS_FRAGS gets. */
static __always_inline struct cursor xdp_cursor(struct xdp_md *xdp)
{
	return cursor(xdp->data, xdp->data_end);
}

/* Of a frame in one piece. */
static __always_inline __u32 xdp_len(struct xdp_md *xdp)
{
	struct cursor cur = xdp_cursor(xdp);

	return bytes_left(&cur);
}

static __always_inline enum reason xdp_decap(struct xdp_md *xdp, const struct node *self,
					     const struct arrival *in)
{
	struct cursor cur = xdp_cursor(xdp);
	struct ethhdr *outer = take_eth(&cur);
	struct frame_header header = {}, *to;
	struct delivery *note;

	if (!outer)
		return REASON_TRUNCATED;
	/* The MACs stay those of the outer frame until it is delivered: the stack must
	 * go on taking it for this host's. */
	header.eth = *outer;
	route(&header, in);
	/* First the step that a driver may refuse: then nothing has happened yet. */
	if (bpf_xdp_adjust_meta(xdp, -(int)sizeof(*note)))
		return REASON_NO_ROOM;
	if (bpf_xdp_adjust_head(xdp, TUNNEL_LEN))
		return REASON_ABORTED;
	cur = xdp_cursor(xdp);
	to = take(&cur, sizeof(*to));
	cur = cursor(xdp->data_meta, xdp->data);
	note = take(&cur, sizeof(*note));
	if (!to || !note)
		return REASON_ABORTED;
	*to = header;
	note->ifindex = in->endpoint->ifindex;
	__builtin_memcpy(note->mac, in->endpoint->mac, ETH_ALEN);
	__builtin_memcpy(note->bridge_mac, in->endpoint->bridge_mac, ETH_ALEN);
	note->key = delivery_key(self, note);
	return REASON_DECAP;
}

static __always_inline enum reason wire_to_stack(struct xdp_md *xdp, __u32 len)
{
	struct cursor cur = xdp_cursor(xdp), ahead = cur;
	struct ethhdr *eth = take_eth(&ahead);
	struct node *self = this_node();
	struct arrival in = {};
	enum reason why;

	if (!self)
		return REASON_NOT_CONFIGURED;
	/* What tc asks of pkt_type. */
	if (eth && !same_mac(eth->h_dest, self->uplink_mac))
		return REASON_NOT_OVERLAY;
	in.link_len = sizeof(*eth);
	why = read_outer(self, &cur, len, 0, &in);
	if (!why)
		why = read_inner(self, &cur, &in);
	if (why)
		return why;
	why = read_flow(self, &cur, 0, &in);
	/* In one test, as in wire_to_container(). */
	if (why || in.held)
		return in.held ? in.held : why;
	in.inner.hash = flow_hash(&in.inner.key, self->flow_seed);
	why = admit(self, &in, xdp);
	if (!why && !is_none(&in.inner.approval.to.addr))
		why = REASON_TRANSLATED; /* here are no helpers for unfinished checksums */
	if (!why)
		why = xdp_decap(xdp, self, &in);
	if (why == REASON_DECAP)
		use_approval(&in.inner, 1);
	return why;
}

/* The peer that a packet with a note came from: what XDP has let in is its sender's own. */
static __always_inline struct peer_stats *stats_of_sender(struct __sk_buff *skb)
{
	struct node *self = this_node();
	struct peer *peer;
	struct addr source;

	if (!self || bpf_skb_load_bytes(skb, sizeof(struct ethhdr) + __builtin_offsetof(iphdr_t, saddr),
					&source, sizeof(source)))
		return 0;
	peer = peer_of(self, source);
	return peer ? stats_of(peer->host) : 0;
}

static __always_inline int is_ours(const struct delivery *note)
{
	struct node *self = this_node();

	return self && note->key == delivery_key(self, note);
}

/* The second half, in from_wire. */
static __always_inline enum reason deliver(struct __sk_buff *skb, const struct delivery *note)
{
	__u32 ifindex = note->ifindex;
	struct peer_stats *stats;
	__u8 macs[2 * ETH_ALEN];

	/* A NIC that takes tags off the data hid this one from XDP. */
	if (skb->vlan_present && skb->vlan_tci & VLAN_VID)
		return REASON_TAGGED;
	__builtin_memcpy(macs, note->mac, sizeof(macs));
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return REASON_ABORTED;
	/* Not before: of what is refused or gone by now, nothing was received. */
	stats = stats_of_sender(skb);
	if (stats)
		credit(stats, packets_of(skb), skb->len);
	bpf_redirect_peer(ifindex, 0);
	return REASON_DELIVERED;
}

static __always_inline enum reason from_wire_or_xdp(struct __sk_buff *skb, struct arrival *in)
{
	struct cursor cur = cursor(skb->data_meta, skb->data);
	struct delivery *note = take(&cur, sizeof(*note));

	if (note && is_ours(note))
		return deliver(skb, note);
	return wire_to_container(skb, cursor_of(skb, ARRIVING_LEN), in);
}

/* Copy the packet's first bytes, EVENT_BYTES at the most; returns how many. There is
 * bpf_xdp_load_bytes() only from 5.18 on. */
static __always_inline __u32 xdp_copy(struct xdp_md *xdp, __u8 *data)
{
	struct cursor cur = xdp_cursor(xdp);
	__u32 copied = 0;

	for (__u32 i = 0; i < EVENT_BYTES; i++) {
		__u8 *byte = take(&cur, 1);

		if (!byte)
			break;
		data[i] = *byte;
		copied = i + 1;
	}
	return copied;
}

static __always_inline void xdp_report_drop(struct xdp_md *xdp, enum reason reason, __u32 len,
					    struct counter *counter)
{
	struct event *event;

	if (!is_sampled(counter))
		return;
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event)
		return;
	describe(event, HOOK_FROM_WIRE_XDP, reason, xdp->ingress_ifindex, len, counter);
	event->captured_len = xdp_copy(xdp, event->data);
	events.ringbuf_submit(event, 0);
}

/* As trace(), for XDP: of each packet no more than EVENT_BYTES. */
static __always_inline void xdp_trace(struct xdp_md *xdp, enum reason reason, __u32 came)
{
	struct tracer *tracer = active_tracer();
	struct trace *trace;
	__u32 len = came;
	__u64 now;

	if (likely(!tracer))
		return;
	now = bpf_ktime_get_ns();
	if (is_over(tracer, now) || !is_traced(tracer, xdp_cursor(xdp), reason))
		return;
	if (reason == REASON_DECAP)
		len -= TUNNEL_LEN;
	trace = traces.ringbuf_reserve(sizeof(*trace) + TRACE_SHORT);
	if (!trace) {
		skip(tracer);
		return;
	}
	describe_trace(trace, HOOK_FROM_WIRE_XDP, reason, xdp->ingress_ifindex, came, len, now);
	trace->captured_len = xdp_copy(xdp, trace->data);
	traces.ringbuf_submit(trace, 0);
}

/* As finish(), for XDP. */
static __always_inline int xdp_finish(struct xdp_md *xdp, __u32 bytes, enum reason reason)
{
	struct counter *counter = count(HOOK_FROM_WIRE_XDP, reason, bytes, 1);
	enum verdict verdict = verdict_of(reason);

	xdp_trace(xdp, reason, bytes);
	if (verdict == VERDICT_PASS || verdict == VERDICT_BYPASS)
		return XDP_PASS;
	if (counter)
		xdp_report_drop(xdp, reason, bytes, counter);
	return verdict == VERDICT_ABORT ? XDP_ABORTED : XDP_DROP;
}

#endif
