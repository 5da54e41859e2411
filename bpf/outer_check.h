/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The checksum of the outer UDP header. IPv4's is 0 (RFC 7348, 5), that of IPv6 is there, and is asked for
 * (RFC 8200, 8.1; as the vxlan device is set). It covers the whole packet, and a program sees no more than
 * its headers. But what is behind the inner ones has a checksum of its own: with that, it sums up to the
 * complement of its pseudo-header, whatever it says, and also if a NIC is yet to fill it in ("local checksum
 * offload" of Documentation/networking/checksum-offloads.rst). So both checksums are right, or neither.
 * Inner addresses and length stand in that pseudo-header as in the inner IP header, and cancel out.
 *
 * Of what has no checksum (fragments, UDP with 0, other protocols), or one of a part only, the kernel computes
 * and verifies it.
 */
#ifndef OVNET_OUTER_CHECK_H
#define OVNET_OUTER_CHECK_H

#include "vxlan.h"

#define OUTER_CHECKED (FAMILY == 6)

/* Is UDP's there, and is it of all that is behind the IP header? Bytes that UDP does not count as its own
 * (RFC 9868 has options there) are not in it. */
static __always_inline int is_summed(const struct udphdr *udp, const iphdr_t *ip)
{
	return udp->check && bpf_ntohs(udp->len) == stated_len(ip) - sizeof(*ip);
}

/* Has it one of its own, right behind the IP header at which the cursor stands? */
static __always_inline int has_checksum(struct cursor cur, const iphdr_t *ip)
{
	struct udphdr *udp;

	if (proto_of(ip) != IPPROTO_UDP)
		return proto_of(ip) == IPPROTO_TCP || proto_of(ip) == IPPROTO_ECHO;
	udp = take_udp(&cur);
	return udp && is_summed(udp, ip);
}

/* What the outer headers add to the sum, of a datagram of that length. */
static __always_inline __u32 tunnel_sum(const iphdr_t *ip, const struct udphdr *udp,
					const struct vxlanhdr *vxlan, __be16 udp_len)
{
	__u32 addrs = sum_of(&ip->saddr, 2 * sizeof(struct addr));

	return addrs + bpf_htons(IPPROTO_UDP) + udp->source + udp->dest + udp->check + 2 * udp_len +
	       sum_of(vxlan, sizeof(*vxlan));
}

/* What is behind them: MACs and, of the IP header, what does not cancel out. */
static __always_inline __u32 inner_sum(const struct ethhdr *eth, const iphdr_t *ip)
{
	__u8 proto = proto_of(ip);

	return sum_of(eth, sizeof(*eth)) + sum_of(ip, 4) + bpf_htons(proto << 8 | ttl_of(ip)) +
	       (__u16)~bpf_htons(proto);
}

/* Of a header that is finished but for it; `udp_len`: of each segment's datagram. */
static __always_inline __u16 outer_checksum(const struct overlay_header *header, __u16 udp_len)
{
	__u32 sum;
	__u16 check;

	if (!OUTER_CHECKED)
		return 0;
	sum = tunnel_sum(&header->ip, &header->udp, &header->vxlan, bpf_htons(udp_len)) +
	      inner_sum(&header->inner_eth, &header->inner_ip);
	check = ~fold(sum);
	return check ? check : 0xffff;
}

/* Is it the same for all segments of a packet? Nothing but their length differs. The kernel, which cuts
 * it apart, leaves it as it is. */
static __always_inline int is_checkable(__u32 len, __u32 headers, __u32 gso_size)
{
	return !OUTER_CHECKED || !gso_size || (len - sizeof(struct ethhdr) - headers) % gso_size == 0;
}

#endif
