/* SPDX-License-Identifier: GPL-2.0 */
/* VXLAN (RFC 7348) on the wire. */
#ifndef OVNET_VXLAN_H
#define OVNET_VXLAN_H

#include "abi.h"
#include "ip.h"

#define VXLAN_FLAGS bpf_htonl(0x08000000) /* I: the VNI is valid; the rest is reserved */

struct vxlanhdr {
	__be32 flags;
	__be32 vni; /* upper 24 bits */
};

/* All that stands before the inner L4 header; what encap writes in one go. */
struct overlay_header {
	struct ethhdr   eth;
	iphdr_t         ip;
	struct udphdr   udp;
	struct vxlanhdr vxlan;
	struct ethhdr   inner_eth;
	iphdr_t         inner_ip;
} __attribute__((packed, aligned(2)));
_Static_assert(sizeof(struct overlay_header) == (FAMILY == 6 ? 124 : 84), "no padding on the wire");

/* Outer headers of a packet, without the link's. */
#define OUTER_LEN (sizeof(iphdr_t) + sizeof(struct udphdr) + sizeof(struct vxlanhdr))

/* Bytes that the tunnel adds between the outer Ethernet header and the inner IP. */
#define TUNNEL_LEN (sizeof(struct overlay_header) - sizeof(struct ethhdr) - sizeof(iphdr_t))
_Static_assert(TUNNEL_LEN == (FAMILY == 6 ? 70 : 50), "the overlay's MTU is counted on this");

/* udp_flow_src_port(): a flow keeps one source port, flows spread over the range. */
static __always_inline __be16 source_port(const struct node *self, __u32 hash)
{
	__u32 min = self->source_port_min, max = self->source_port_max;

	/* The upper bits take part in the remainder, the lower in the port. */
	hash ^= hash << 16;
	return bpf_htons(((__u64)hash * (max - min) >> 32) + min);
}

#endif
