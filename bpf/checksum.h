/* SPDX-License-Identifier: GPL-2.0 */
/* Checksums of IPv4 headers without options. */
#ifndef OVNET_CHECKSUM_H
#define OVNET_CHECKSUM_H

#include <linux/ip.h>

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

#endif
