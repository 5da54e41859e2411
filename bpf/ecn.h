/* SPDX-License-Identifier: GPL-2.0 */
/* ECN over tunnels as the kernel does it (RFC 6040; include/net/inet_ecn.h). */
#ifndef OVNET_ECN_H
#define OVNET_ECN_H

#define ECN_MASK	3
#define ECN_NOT_ECT	0
#define ECN_ECT_1	1
#define ECN_ECT_0	2
#define ECN_CE		3

/* Outer TOS for an inner one: ECN copied, CE shown as ECT(0); DSCP stays ours. */
static __always_inline __u8 ecn_encapsulate(__u8 inner_tos)
{
	__u8 ecn = inner_tos & ECN_MASK;

	return ecn == ECN_CE ? ECN_ECT_0 : ecn;
}

/* Inner TOS after decapsulation; -1: CE came for a packet that cannot carry it. */
static __always_inline int ecn_decapsulate(__u8 outer_tos, __u8 inner_tos)
{
	__u8 outer = outer_tos & ECN_MASK, inner = inner_tos & ECN_MASK;

	if (inner == ECN_NOT_ECT)
		return outer == ECN_CE ? -1 : inner_tos;
	if (outer == ECN_CE)
		return inner_tos | ECN_CE;
	if (outer == ECN_ECT_1 && inner == ECN_ECT_0)
		return (inner_tos & ~ECN_MASK) | ECN_ECT_1;
	return inner_tos;
}

#endif
