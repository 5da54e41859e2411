/* SPDX-License-Identifier: GPL-2.0 */
/* IPv4 in Ethernet: what a container sends and gets, and what routing does to it. */
#ifndef OVNET_IPV4_H
#define OVNET_IPV4_H

#include <linux/in.h>

#include "checksum.h"
#include "parse.h"
#include "reason.h"

#define IP_MF		0x2000
#define IP_OFFSET	0x1fff

/* Both headers, without options. */
struct ipv4_header {
	struct ethhdr eth;
	struct iphdr  ip;
} __attribute__((packed, aligned(2)));

/* Take both. `eth` is there unless the packet ends in it, `ip` if the answer is NONE. */
static __always_inline enum reason take_ipv4(struct cursor *cur, struct ethhdr **eth,
					     struct iphdr **ip)
{
	*eth = take_eth(cur);
	if (!*eth)
		return REASON_TRUNCATED;
	if ((*eth)->h_proto != bpf_htons(ETH_P_IP))
		return REASON_NOT_IPV4;
	*ip = take_ip(cur);
	return *ip ? REASON_NONE : REASON_TRUNCATED;
}

/* By halfwords, as same_mac(). */
static __always_inline int same_ip(const struct iphdr *a, const struct iphdr *b)
{
	const __u16 *x = (const void *)a, *y = (const void *)b;
	__u16 differ = 0;

#pragma unroll
	for (int i = 0; i < sizeof(*a) / 2; i++)
		differ |= x[i] ^ y[i];
	return !differ;
}

#define IP_MAX_LEN 0xffff

/* Total length of a packet that has `room` bytes from the IP header on. Segments in one packet
 * may be more than the header can say, which then says 0 (BIG TCP; iph_totlen() of the kernel,
 * which also wants them to be TCP's). */
static __always_inline __u32 ip_total(const struct iphdr *ip, __u32 room, __u32 gso_size)
{
	return ip->tot_len || !gso_size ? bpf_ntohs(ip->tot_len) : room;
}

/* What cannot be bypassed for reasons that stand in the IP header alone.
 * `room` is how many bytes of packet there are from the IP header on. */
static __always_inline enum reason ip_obstacle(const struct iphdr *ip, __u32 room, __u32 gso_size)
{
	__u32 total = ip_total(ip, room, ip->protocol == IPPROTO_TCP ? gso_size : 0);

	if (ip->version != 4)
		return REASON_NOT_IPV4;
	if (ip->ihl != 5)
		return REASON_IP_OPTIONS;
	/* Padding is for ip_rcv() to trim: nobody behind a bypass would. */
	if (total < sizeof(*ip) || total != room)
		return REASON_TRUNCATED;
	if (ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return REASON_FRAGMENT;
	/* ip_forward() refuses a TTL of 1 and sends an ICMP error. */
	if (ip->ttl <= 1)
		return REASON_TTL;
	return REASON_NONE;
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
