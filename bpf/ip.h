/* SPDX-License-Identifier: GPL-2.0 */
/*
 * IP in Ethernet: what a container sends and gets. One text for both families; what differs is in
 * ipv4.h and ipv6.h, which have the same functions, and `iphdr_t`, the header.
 */
#ifndef OVNET_IP_H
#define OVNET_IP_H

#include <linux/in.h>

#include "addr.h"
#include "checksum.h"
#include "parse.h"
#include "reason.h"
#if FAMILY == 4
#include "ipv4.h"
#else
#include "ipv6.h"
#endif

static __always_inline iphdr_t *take_ip(struct cursor *cur)
{
	return take(cur, sizeof(iphdr_t));
}

/* Both headers, without options. */
struct frame_header {
	struct ethhdr eth;
	iphdr_t       ip;
} __attribute__((packed, aligned(2)));

/* Take both. `eth` is there unless the packet ends in it, `ip` if the answer is NONE. */
static __always_inline enum reason take_headers(struct cursor *cur, struct ethhdr **eth,
						iphdr_t **ip)
{
	*eth = take_eth(cur);
	if (!*eth)
		return REASON_TRUNCATED;
	if ((*eth)->h_proto != bpf_htons(ETH_P_FAMILY))
		return REASON_OTHER_FAMILY;
	*ip = take_ip(cur);
	return *ip ? REASON_NONE : REASON_TRUNCATED;
}

/* By halfwords, as same_mac(). */
static __always_inline int same_ip(const iphdr_t *a, const iphdr_t *b)
{
	const __u16 *x = (const void *)a, *y = (const void *)b;
	__u16 differ = 0;

#pragma unroll
	for (int i = 0; i < sizeof(*a) / 2; i++)
		differ |= x[i] ^ y[i];
	return !differ;
}

/* What cannot be bypassed for reasons that stand in the IP header alone.
 * `room` is how many bytes of packet there are from the IP header on. */
static __always_inline enum reason ip_obstacle(const iphdr_t *ip, __u32 room, __u32 gso_size)
{
	__u32 total = ip_total(ip, room, proto_of(ip) == IPPROTO_TCP ? gso_size : 0);

	if (ip->version != FAMILY)
		return REASON_OTHER_FAMILY;
	if (has_options(ip))
		return REASON_IP_OPTIONS;
	/* Padding is for ip_rcv() to trim: nobody behind a bypass would. */
	if (total < sizeof(*ip) || total != room)
		return REASON_TRUNCATED;
	if (is_fragment(ip))
		return REASON_FRAGMENT;
	/* ip_forward() refuses a TTL of 1 and sends an ICMP error. */
	if (ttl_of(ip) <= 1)
		return REASON_TTL;
	return REASON_NONE;
}

#endif
