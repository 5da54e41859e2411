/* SPDX-License-Identifier: GPL-2.0 */
/* Where packets leave netfilter: their flows are approved. */
#ifndef OVNET_LEARN_H
#define OVNET_LEARN_H

#include "claim.h"
#include "translation.h"

/* The flow of a packet that has left netfilter. Of one that accepts a connection only what it was
 * translated to is learned: by then who has opened it can bypass with its next packet. */
static __always_inline enum reason learn_flow(struct __sk_buff *skb, const struct node *self,
					      const struct inner *inner)
{
	__u32 hash = flow_hash(&inner->key, self->flow_seed);
	struct translation none = {};
	enum reason why;

	if (skb->hash != hash)
		return inner->key.direction == DIR_OUT ? learn_departed(skb, self, &inner->key) :
							 learn_arrived(skb, self, inner);
	if (inner->l4.control)
		return REASON_TCP_CONTROL;
	why = approve_flow(skb, self, &inner->key, hash, &none);
	return why ? why : REASON_LEARNED;
}

/* The whole of a learning hook. */
static __always_inline enum reason learn(struct __sk_buff *skb, enum direction direction)
{
	__u32 len = skb->len - sizeof(struct ethhdr);
	struct cursor cur = cursor_of(skb, INNER_LEN);
	struct node *self = this_node();
	struct inner inner = {};
	struct endpoint *endpoint;
	struct ethhdr *eth;
	enum reason why;
	iphdr_t *ip;

	if (!self)
		return REASON_NOT_CONFIGURED;
	why = take_headers(&cur, &eth, &ip);
	/* Flooded, so it also shows what comes from ports that have no programs (yet). */
	if (direction == DIR_IN)
		heed_claim(&cur, why, eth, ip, skb->ingress_ifindex);
	/* In one test, as in wire_to_container(). */
	if (why || self->bypass != BYPASS_LEARNED)
		return self->bypass != BYPASS_LEARNED ? REASON_BYPASS_OFF : why;
	/* Cheap and common: most of what a port sees is not the overlay's. */
	if (direction == DIR_IN && skb->ingress_ifindex != self->overlay_ifindex &&
	    !peer_of(self, addr_at(&ip->saddr)))
		return REASON_NOT_OVERLAY;
	why = ip_obstacle(ip, len, skb->gso_size);
	/* The TTL has been decremented on the way: 1 may still be delivered. */
	if (why && why != REASON_TTL)
		return why;
	endpoint = endpoint_of(direction == DIR_OUT ? addr_at(&ip->saddr) : addr_at(&ip->daddr));
	if (!endpoint)
		return REASON_NO_ENDPOINT;
	/* Flooded, or delivered by the bridge to where the address is not (any more). */
	if (direction == DIR_IN && endpoint->ifindex != skb->ifindex)
		return REASON_CHANGED;
	inner.ip = ip;
	why = take_flow(&cur, direction, endpoint->ifindex, len, &inner);
	if (why)
		return why;
	if (inner.l4.control && !(direction == DIR_IN && inner.l4.accepts))
		return REASON_TCP_CONTROL;
	return learn_flow(skb, self, &inner);
}

#endif
