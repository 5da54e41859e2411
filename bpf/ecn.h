/* SPDX-License-Identifier: GPL-2.0 */
/*
 * ECN over tunnels as the kernel does it (RFC 6040; include/net/inet_ecn.h), and
 * the checksum arithmetic for the IP header fields that we change (RFC 1624).
 */
#ifndef OVNET_ECN_H
#define OVNET_ECN_H

#include <linux/ip.h>

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

/* One 16-bit word of a header changed from `from` to `to` (RFC 1624, eqn. 3). */
static __always_inline __u16 csum_replace(__u16 check, __u16 from, __u16 to)
{
	__u32 sum = (__u16)~check + (__u32)(__u16)~from + to;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Checksum of a header without options (RFC 1071): what belongs in its checksum field
 * while that is 0, and 0 if the field is right. */
static __always_inline __u16 ip_checksum(const struct iphdr *ip)
{
	const __u16 *word = (const void *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += word[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* What ip_forward() does to a header: TTL down by one. */
static __always_inline void ip_decrease_ttl(struct iphdr *ip)
{
	__u16 from = bpf_htons(ip->ttl << 8);

	ip->ttl--;
	ip->check = csum_replace(ip->check, from, bpf_htons(ip->ttl << 8));
}

static __always_inline void ip_set_tos(struct iphdr *ip, __u8 tos)
{
	ip->check = csum_replace(ip->check, bpf_htons(ip->tos), bpf_htons(tos));
	ip->tos = tos;
}

#endif
