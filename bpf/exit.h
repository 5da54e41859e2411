/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How a packet leaves a program: counted, sampled if it is dropped, and with an answer
 * for tc. What XDP has of its own is in xdp.h.
 */
#ifndef OVNET_EXIT_H
#define OVNET_EXIT_H

#include "maps.h"
#include "trace.h"

static __always_inline void report_drop(struct __sk_buff *skb, enum hook hook,
					enum reason reason, struct counter *counter)
{
	struct event *event;

	if (!is_sampled(counter))
		return;
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event)
		return;
	describe(event, hook, reason, skb->ifindex, skb->len, counter);
	event->captured_len = copy_start(skb, event->data, skb->len, EVENT_BYTES);
	events.ringbuf_submit(event, 0);
}

/* Count a packet that leaves `hook` for `reason`, and say what tc shall do with it.
 * UNSPEC rather than OK: filters of others behind ours still get their turn. */
static __always_inline int finish(struct __sk_buff *skb, enum hook hook, __u32 bytes,
				  __u32 packets, enum reason reason)
{
	struct counter *counter = count(hook, reason, bytes, packets);
	enum verdict verdict = verdict_of(reason);

	trace(skb, hook, reason, bytes);
	if (verdict == VERDICT_PASS)
		return TC_ACT_UNSPEC;
	if (verdict == VERDICT_BYPASS || verdict == VERDICT_TUNNEL)
		return TC_ACT_REDIRECT;
	if (counter)
		report_drop(skb, hook, reason, counter);
	return TC_ACT_SHOT;
}

#endif
