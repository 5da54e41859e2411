/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Packets of IPv6 at the programs for IPv4, which hang at the hooks: handed on to those for IPv6, on
 * maps of their own, before anything else is asked of them. Where none is in place, what follows leaves
 * them to the kernel path as any other family.
 */
#ifndef OVNET_HANDOVER_H
#define OVNET_HANDOVER_H

#include "maps.h"
#include "parse.h"

#if FAMILY == 4
/* Does not return if there is a program in the place. */
static __always_inline void hand_over(struct __sk_buff *skb, enum hook hook)
{
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		ipv6_programs.call(skb, hook);
}

/* As hand_over(), for XDP, which has nobody's word for the protocol yet. */
static __always_inline void xdp_hand_over(struct xdp_md *xdp)
{
	struct cursor cur = cursor(xdp->data, xdp->data_end);
	struct ethhdr *eth = take_eth(&cur);

	if (eth && eth->h_proto == bpf_htons(ETH_P_IPV6))
		ipv6_xdp.call(xdp, HOOK_FROM_WIRE_XDP);
}
#else
static __always_inline void hand_over(struct __sk_buff *skb, enum hook hook)
{
}

static __always_inline void xdp_hand_over(struct xdp_md *xdp)
{
}
#endif

#endif
