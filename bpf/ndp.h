/* SPDX-License-Identifier: GPL-2.0 */
/* Claims to an IPv6 address: neighbour discovery. */
#ifndef OVNET_NDP_H
#define OVNET_NDP_H

#define ND_SOLICITATION	 135
#define ND_ADVERTISEMENT 136
#define ND_HOP_LIMIT	 255 /* less has come through a router */

/* RFC 4861, 4.3 and 4.4, up to the options. */
struct neighbour_message {
	__u8   type;
	__u8   code;
	__be16 check;
	__be32 flags;
	__be32 target[4];
};
_Static_assert(sizeof(struct neighbour_message) == 24, "as on the wire");

/* As in arp.h. Who advertises an address claims it, and so does who asks for another from it; who asks
 * from no address only wants to know if one is free. */
static __always_inline void heed_claim(struct cursor *cur, enum reason why, const struct ethhdr *eth,
				       const iphdr_t *ip, __u32 from)
{
	struct cursor ahead = *cur;
	struct neighbour_message *message;

	if (why || ip->nexthdr != IPPROTO_ICMPV6 || ip->hop_limit != ND_HOP_LIMIT)
		return;
	message = take(&ahead, sizeof(*message));
	if (!message)
		return;
	if (message->type == ND_ADVERTISEMENT)
		heed(addr_at(message->target), from);
	else if (message->type == ND_SOLICITATION)
		heed(addr_at(&ip->saddr), from);
}

#endif
