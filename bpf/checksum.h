/* SPDX-License-Identifier: GPL-2.0 */
/* The Internet checksum (RFC 1071), by halfwords: a packet guarantees no more alignment. */
#ifndef OVNET_CHECKSUM_H
#define OVNET_CHECKSUM_H

#include <linux/types.h>

/* One 16-bit word of a header changed from `from` to `to` (RFC 1624, eqn. 3). */
static __always_inline __u16 csum_replace(__u16 check, __u16 from, __u16 to)
{
	__u32 sum = (__u16)~check + (__u32)(__u16)~from + to;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Of an even number of bytes, not folded. */
static __always_inline __u32 sum_of(const void *data, __u32 bytes)
{
	const __u16 *word = data;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < bytes / 2; i++)
		sum += word[i];
	return sum;
}

/* Of at most 2^16 halfwords, as 16 bits. */
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

#endif
