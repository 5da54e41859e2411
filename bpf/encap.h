/* SPDX-License-Identifier: GPL-2.0 */
/* From a container's port to the uplink. */
#ifndef OVNET_ENCAP_H
#define OVNET_ENCAP_H

#include "claim.h"
#include "ecn.h"
#include "translation.h"
#include "outer_check.h"

/* FIXED_GSO: segments keep their size; UDP GSO is refused without it. */
#define ENCAP_FLAGS (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET |         \
		     ENCAP_L3_FAMILY | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |                   \
		     BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethhdr)) |                  \
		     BPF_F_ADJ_ROOM_ENCAP_L2_ETH)

/* Everything in front of the container's packet; `header->inner_ip` is filled already.
 * `len`: of the container's frame; `segment`: of each of those that will be made of it. */
static __always_inline void fill_header(struct overlay_header *header, const struct node *self,
					const struct peer *peer, __u32 hash, __u32 len,
					__u32 segment)
{
	__u32 udp_len = len + sizeof(struct udphdr) + sizeof(struct vxlanhdr);

	header->eth.h_proto = bpf_htons(ETH_P_FAMILY); /* MACs: the neighbour code writes them */
	header->ip = outer_ip(self, peer, ecn_encapsulate(tos_of(&header->inner_ip)), udp_len);
	header->udp.source = source_port(self, hash);
	header->udp.dest = peer->port;
	header->udp.len = bpf_htons(udp_len);
	header->vxlan.flags = VXLAN_FLAGS;
	header->vxlan.vni = bpf_htonl(peer->vni << 8);
	__builtin_memcpy(header->inner_eth.h_dest, peer->vtep_mac, ETH_ALEN);
	__builtin_memcpy(header->inner_eth.h_source, self->vtep_mac, ETH_ALEN);
	header->inner_eth.h_proto = bpf_htons(ETH_P_FAMILY);
	header->udp.check = outer_checksum(header, segment + sizeof(struct udphdr) + sizeof(struct vxlanhdr));
}

/* Put the tunnel around a frame of `len` bytes, in which IP and L4 headers are `headers` bytes;
 * `header->inner_ip` is filled already. NONE, or why not: then nothing has changed. Written with
 * store_bytes, not through pointers: a program that writes through pointers gets a prologue that
 * copies every cloned skb, and local TCP sends clones. */
static __always_inline enum reason wrap(struct __sk_buff *skb, const struct node *self,
					const struct peer *peer, __u32 hash, __u32 len,
					__u32 headers, struct overlay_header *header)
{
	__u32 segment = skb->gso_size ? sizeof(struct ethhdr) + headers + skb->gso_size : len;

	/* Segments in one packet. The kernel has them cut apart in front of the vxlan device
	 * (gso_max_size); here an uplink might take them as they are, with a length modulo 2^16. */
	if (len + OUTER_LEN > IP_MAX_LEN)
		return REASON_OUTER_LENGTH;
	if (!is_checkable(len, headers, skb->gso_size))
		return REASON_SUPER_PACKET;
	fill_header(header, self, peer, hash, len, segment);
	if (bpf_skb_adjust_room(skb, TUNNEL_LEN, BPF_ADJ_ROOM_MAC, ENCAP_FLAGS))
		return REASON_NO_ROOM;
	return bpf_skb_store_bytes(skb, 0, header, sizeof(*header), 0) ? REASON_ABORTED : REASON_NONE;
}

static __always_inline void credit_sent(struct addr host, __u32 packets, __u32 bytes)
{
	struct peer_stats *stats = stats_of(host);

	if (stats) {
		stats->tx_packets += packets;
		stats->tx_bytes += bytes;
	}
}

/* Hand the finished packet to the uplink; the neighbour code writes the outer MACs. */
static __always_inline void send_to(const struct peer *peer)
{
	struct bpf_redir_neigh hop = { .nh_family = AF_FAMILY };

	/* A union with that of IPv4. */
	__builtin_memcpy(hop.ipv6_nh, &peer->next_hop, sizeof(peer->next_hop));
	if (!is_none(&peer->next_hop))
		redirect_neigh(peer->ifindex, &hop, sizeof(hop), 0);
	else
		redirect_neigh(peer->ifindex, 0, 0, 0);
}

/* A container's packet for a peer's subnet or a service, as far as it has been read. The source port
 * comes from its signature. */
struct departure {
	struct inner inner;
	struct peer *peer; /* 0: not known, its destination is a service's */
};

/* May the container of this port send it past the kernel path? NONE, or why not. */
static __always_inline enum reason check_sender(const struct __sk_buff *skb,
						const struct ethhdr *eth, const iphdr_t *ip)
{
	struct endpoint *source = endpoint_of(addr_at(&ip->saddr));

	/* Unknown yet, another container's address, or a MAC that is for the bridge to judge. */
	if (!source || !same_mac(eth->h_source, source->mac))
		return REASON_NO_ENDPOINT;
	if (source->ifindex != skb->ifindex) {
		/* The bridge has learned from this frame that its MAC has moved here. */
		forget_endpoint(addr_at(&ip->saddr));
		return REASON_NO_ENDPOINT;
	}
	return same_mac(eth->h_dest, source->bridge_mac) ? REASON_NONE : REASON_NOT_ROUTED;
}

/* A frame from a container. NONE if it is for a peer or a service, and from whom it says: then there
 * is a flow to be signed or bypassed. */
static __always_inline enum reason read_frame(const struct node *self, struct cursor *cur,
					      struct __sk_buff *skb, struct departure *out)
{
	__u32 len = skb->len - sizeof(struct ethhdr);
	struct ethhdr *eth;
	iphdr_t *ip;
	enum reason why = take_headers(cur, &eth, &ip);

	heed_claim(cur, why, eth, ip, skb->ifindex);
	if (why)
		return why;
	out->inner.ip = ip;
	out->peer = peer_of(self, addr_at(&ip->daddr));
	if (!out->peer && !is_service(addr_at(&ip->daddr)))
		return REASON_NOT_OVERLAY;
	if (!bypasses(self))
		return REASON_BYPASS_OFF;
	why = ip_obstacle(ip, len, skb->gso_size);
	if (why)
		return why;
	/* ip_rcv() would drop it; we would forward it, damage and all. */
	if (is_damaged(ip))
		return REASON_INNER_CHECKSUM;
	why = check_sender(skb, eth, ip);
	if (!why)
		why = take_flow(cur, DIR_OUT, skb->ifindex, len, &out->inner);
	if (why)
		return why;
	/* Whatever path it takes, conntrack sees it. */
	if (out->inner.l4.control)
		forget_flow(&out->inner.key);
	if (out->peer && out->peer->flags & PEER_F_KERNEL_PATH)
		return REASON_PEER_KERNEL_PATH;
	return oversize(self, &out->inner, len, skb->gso_size) ? REASON_OVERSIZE : REASON_NONE;
}

/* The mark with which a packet leaves: what netfilter gave the one that was approved. */
static __always_inline __u32 mark_of(const struct __sk_buff *skb, const struct flow *flow)
{
	__u32 mark = skb->mark;

	/* Or it loads the mark from one pointer to either: that of the context may not be changed. */
	barrier_var(mark);
	return flow ? flow->mark : mark;
}

/* To whom the approved packet goes, if it is translated. NONE, or why it does not. */
static __always_inline enum reason find_target(const struct node *self, struct departure *out)
{
	const struct translation *to = &out->inner.approval.to;

	if (is_none(&to->addr)) /* read_frame() has looked at it */
		return out->peer ? REASON_NONE : REASON_NOT_OVERLAY;
	out->peer = peer_of(self, to->addr);
	if (!out->peer)
		return REASON_NOT_OVERLAY; /* no longer */
	return out->peer->flags & PEER_F_KERNEL_PATH ? REASON_PEER_KERNEL_PATH : REASON_NONE;
}

static __always_inline enum reason encap(struct __sk_buff *skb, const struct node *self,
					 const struct departure *out)
{
	const struct translation *to = &out->inner.approval.to;
	const struct flow *flow = flow_of(&out->inner);
	__u32 len = skb->len, packets = packets_of(skb);
	struct overlay_header header = {};
	enum reason why;

	/* Copied before the packet moves: adjust_room invalidates `ip`. */
	header.inner_ip = *out->inner.ip;
	ip_decrease_ttl(&header.inner_ip);
	if (!is_none(&to->addr))
		translate_ip(&header.inner_ip, DIR_OUT, to);
	why = wrap(skb, self, out->peer, out->inner.hash, len, sizeof(iphdr_t) + out->inner.l4.header_len,
		   &header);
	if (why)
		return why;
	if (!is_none(&to->addr) && translate_l4(skb, sizeof(header), &out->inner.key, to))
		return REASON_ABORTED;
	use_approval(&out->inner, packets);
	/* As with the mark: the uplink's qdiscs go by both. */
	skb->mark = mark_of(skb, flow);
	if (flow)
		skb->priority = flow->priority;
	credit_sent(out->peer->host, packets, len);
	send_to(out->peer);
	return REASON_ENCAP;
}

static __always_inline enum reason container_to_wire(struct __sk_buff *skb)
{
	struct cursor cur = cursor_of(skb, INNER_LEN);
	struct node *self = this_node();
	struct departure out = {};
	enum reason why;

	if (!self)
		return REASON_NOT_CONFIGURED;
	if (skb->vlan_present)
		return REASON_VLAN;
	why = read_frame(self, &cur, skb, &out);
	if (why)
		return why;
	out.inner.hash = flow_hash(&out.inner.key, self->flow_seed);
	why = may_bypass(self, &out.inner);
	if (!why)
		why = find_target(self, &out);
	/* The peer's entry is the way of packets without such a mark. */
	if (!why && mark_of(skb, out.inner.approval.flow) & self->routing_marks)
		why = REASON_POLICY_ROUTED;
	if (!why)
		why = encap(skb, self, &out);
	if (why != REASON_ENCAP)
		bpf_set_hash(skb, out.inner.hash);
	return why;
}

#endif
