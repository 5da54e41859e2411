/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How a packet leaves a program: counted, sampled if it is dropped, and with an answer
 * for tc. What XDP has of its own is in xdp.h.
 */
#ifndef OVNET_EXIT_H
#define OVNET_EXIT_H

#include "maps.h"

static __always_inline void report_drop(struct __sk_buff *skb, enum hook hook,
					enum reason reason, struct counter *counter)
{
	__u64 rest = skb->len - 1ULL; /* of what is captured, behind its first byte */
	struct event *event;

	if (!is_sampled(counter))
		return;
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event)
		return;
	describe(event, hook, reason, skb->ifindex, skb->len, counter);
	if (rest > EVENT_BYTES - 1)
		rest = EVENT_BYTES - 1;
	/* The verifier wants to see a length of at least one in the register that is passed.
	 * An older one (6.1) learns nothing from a comparison with zero, so one is added;
	 * left alone, the compiler would take the one off again. */
	barrier_var(rest);
	event->captured_len = rest + 1;
	if (bpf_skb_load_bytes(skb, 0, event->data, rest + 1))
		event->captured_len = 0;
	events.ringbuf_submit(event, 0);
}

/* Count a packet that leaves `hook` for `reason`, and say what tc shall do with it.
 * UNSPEC rather than OK: filters of others behind ours still get their turn. */
static __always_inline int finish(struct __sk_buff *skb, enum hook hook, __u32 bytes,
				  __u32 packets, enum reason reason)
{
	struct counter *counter = count(hook, reason, bytes, packets);
	enum verdict verdict = verdict_of(reason);

	if (verdict == VERDICT_PASS)
		return TC_ACT_UNSPEC;
	if (verdict == VERDICT_BYPASS || verdict == VERDICT_TUNNEL)
		return TC_ACT_REDIRECT;
	if (counter)
		report_drop(skb, hook, reason, counter);
	return TC_ACT_SHOT;
}

#endif
