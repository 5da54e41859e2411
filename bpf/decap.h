/* SPDX-License-Identifier: GPL-2.0 */
/* From the uplink to a container's port: what tc and XDP have in common, and tc's. */
#ifndef OVNET_DECAP_H
#define OVNET_DECAP_H

#include "ecn.h"
#include "translation.h"
#include "outer_check.h"

#define DECAP_FLAGS (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET)

/* Has the NIC or GRO verified the outer UDP checksum? GRO verifies before it merges, and
 * marks the merged packet as it marks one that this machine sends: CHECKSUM_PARTIAL, which
 * bpf_csum_level() does not tell from unverified. udp_rcv() takes both unseen. */
static __always_inline int checksum_verified(struct __sk_buff *skb)
{
	return skb->gso_size || bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) >= 0;
}

/* Is the outer checksum one that only the kernel can judge? */
static __always_inline int is_for_kernel(const struct udphdr *udp, struct __sk_buff *skb)
{
	if (OUTER_CHECKED)
		return !udp->check; /* which the device refuses; for others see is_sum_right() */
	return udp->check && !(skb && checksum_verified(skb));
}

/* What to do with a packet of nobody that we know: refuse it, but only if we know all. */
static __always_inline enum reason nobodys(const struct node *self, enum reason refusal)
{
	return self->flags & NODE_F_PEERS_INCOMPLETE ? REASON_PEERS_INCOMPLETE : refusal;
}

/* Can a container have this address? A network may be larger than what leases are handed out
 * from; in the rest of it are hosts, services and whatever else, as there are outside of it. */
static __always_inline int in_pool(const struct node *self, const struct addr *addr)
{
	return !is_before(addr, &self->pool_first) && !is_before(&self->pool_last, addr);
}

/* May `host` send packets with this inner source? An overlay is a trust boundary, so
 * this holds for what the kernel path carries too. NONE, or why not, or why only there. */
static __always_inline enum reason check_source(const struct node *self, struct addr host,
						struct addr inner_source)
{
	struct peer *peer = peer_of(self, inner_source);
	struct addr subnet;

	/* No host: leases of several hosts lie in this block; being a peer must do. */
	if (peer && !same_addr(&peer->host, &host) && !is_none(&peer->host))
		return REASON_SPOOFED_SOURCE;
	if (peer)
		return peer->flags & PEER_F_KERNEL_PATH ? REASON_PEER_KERNEL_PATH : REASON_NONE;
	subnet = masked(&inner_source, &self->subnet_mask);
	if (same_addr(&subnet, &self->subnet))
		return REASON_SPOOFED_SOURCE; /* one of our own */
	/* The host's own address may lie in the network. It has sent as that already. */
	if (same_addr(&inner_source, &host) || !in_pool(self, &inner_source))
		return REASON_FOREIGN_SOURCE;
	return nobodys(self, REASON_SPOOFED_SOURCE);
}

/* A VXLAN packet for us, as far as it has been read and believed. */
struct arrival {
	__u32 link_len;   /* bytes of the link's header, in front of the outer IP header */
	struct inner inner;
	struct peer_stats *stats; /* of the sending host */
	struct endpoint *endpoint;
	struct addr host; /* outer source, a known VTEP */
	__u32  len;       /* bytes of the inner frame */
	int    tos;       /* that the inner packet is to have; -1: none will do */
	enum reason held; /* why only the kernel path may take it, if its source is right */
	__u32 sum;        /* of the outer checksum's fields, if nobody has verified it: tunnel_sum() */
	__u8 outer_tos;
	__u8 believed;    /* its source is right, and nothing but the tunnel is in its way */
};

/* Priority tags that we look behind: the kernel takes any number of them off. */
#define MAX_TAGS 4

struct vlan_tag {
	__be16 tci;
	__be16 proto; /* of what is behind it */
};

/* Where a priority tag stands beside the data and more tags in them, go behind those, as
 * __netif_receive_skb_core() does. NONE, or whose the packet is. */
static __always_inline enum reason skip_tags(struct cursor *cur, __be16 *proto)
{
#pragma unroll
	for (int i = 0; i < MAX_TAGS && is_vlan(*proto); i++) {
		struct vlan_tag *tag = take(cur, sizeof(*tag));

		if (!tag)
			return REASON_TRUNCATED;
		if (tag->tci & bpf_htons(VLAN_VID))
			return REASON_VLAN; /* of a VLAN device, or nobody's */
		*proto = tag->proto;
	}
	return is_vlan(*proto) ? REASON_TAGGED : REASON_NONE;
}

/* Bytes of the link's header in front of a packet from the uplink. Where that is no Ethernet
 * (WireGuard, a TUN, PPP) there is none, as a rule; but a device on top of another one may
 * leave that one's there (xfrm over Ethernet). The stack knows where the IP header is. */
static __always_inline __u32 find_link_len(struct __sk_buff *skb, const struct node *self,
					   struct cursor start)
{
	iphdr_t ip, *first;

	if (likely(!(self->flags & NODE_F_NO_ETHERNET)))
		return sizeof(struct ethhdr);
	first = take_ip(&start);
	if (first && !bpf_skb_load_bytes_relative(skb, 0, &ip, sizeof(ip), BPF_HDR_START_NET) &&
	    same_ip(first, &ip))
		return 0;
	return sizeof(struct ethhdr);
}

/* The link's header, and tags that we look behind. NONE if an IP header follows, behind
 * `tagged` bytes of such tags. */
static __always_inline enum reason read_link(struct cursor *cur, __u32 link_len,
					     struct __sk_buff *skb, __u32 *tagged)
{
	struct ethhdr *eth = link_len ? take_eth(cur) : 0;
	enum reason why = REASON_NONE;
	__be16 proto;

	*tagged = 0;
	if (link_len && !eth)
		return REASON_TRUNCATED;
	proto = eth ? eth->h_proto : skb->protocol;
	if (is_vlan(proto) && !skb)
		return REASON_VLAN;
	if (is_vlan(proto) && skb->vlan_present) {
		*tagged = bytes_left(cur);
		why = skip_tags(cur, &proto);
		*tagged -= bytes_left(cur);
	}
	if (why)
		return why;
	return proto == bpf_htons(ETH_P_FAMILY) ? REASON_NONE : REASON_OTHER_FAMILY;
}

/* The outer headers of a packet of `len` bytes that is for this host, behind those
 * `in->link_len` ones. NONE if the cursor stands behind the VXLAN header of a known VTEP.
 * `skb`: 0 in XDP, which sees tags only in the data, and no verdict of the NIC on checksums. */
static __always_inline enum reason read_outer(const struct node *self, struct cursor *cur,
					      __u32 len, struct __sk_buff *skb,
					      struct arrival *in)
{
	struct vxlanhdr *vxlan;
	struct udphdr *udp;
	iphdr_t *ip;
	__u32 tagged;
	enum reason refused = REASON_NONE, why = read_link(cur, in->link_len, skb, &tagged);

	if (why)
		return why;
	len -= in->link_len;
	ip = take_ip(cur);
	if (!ip)
		return REASON_TRUNCATED;
	if (ip->version != FAMILY || !is_at(&ip->daddr, &self->host))
		return REASON_NOT_OVERLAY;
	why = take_outer_options(skb, cur, self, ip, in->link_len + tagged, &refused);
	if (why)
		return why;
	udp = take_udp(cur);
	if (!udp)
		return REASON_TRUNCATED;
	if (udp->dest != self->port)
		return REASON_NOT_OVERLAY;
	if (tagged)
		return REASON_TAGGED;
	if (refused)
		return refused;
	/* For the kernel path to sort out, but not before the source check. */
	if (ip_total(ip, len, skb ? skb->gso_size : 0) != len ||
	    bpf_ntohs(udp->len) != (__u16)(len - sizeof(*ip))) /* as udp_tunnel_xmit_skb() has it */
		in->held = REASON_TRUNCATED; /* padding, or a lie */
	else if (is_damaged(ip) || is_for_kernel(udp, skb))
		in->held = REASON_OUTER_CHECKSUM; /* the kernel can, and we cannot */
	else if (skb && skb->vlan_present)
		in->held = REASON_VLAN;
	vxlan = take(cur, sizeof(*vxlan));
	if (!vxlan)
		return REASON_TRUNCATED;
	/* Another vxlan device may share the port with another VNI. */
	if (vxlan->flags != VXLAN_FLAGS || vxlan->vni != bpf_htonl(self->vni << 8))
		return REASON_VXLAN_HEADER;
	if (OUTER_CHECKED && !(skb && checksum_verified(skb)))
		in->sum = tunnel_sum(ip, udp, vxlan, udp->len);
	in->host = addr_at(&ip->saddr);
	in->outer_tos = tos_of(ip);
	in->len = len - OUTER_LEN;
	in->stats = stats_of(in->host);
	return in->stats ? REASON_NONE : nobodys(self, REASON_UNKNOWN_VTEP);
}

/* Is the outer checksum verified, or as it has to be around this packet? The cursor stands behind the
 * inner IP header. */
static __always_inline int is_sum_right(struct cursor cur, const struct ethhdr *eth,
					const struct arrival *in)
{
	const iphdr_t *ip = in->inner.ip;

	if (!OUTER_CHECKED || !in->sum)
		return 1;
	/* Padding is in the outer checksum alone. */
	if (!has_checksum(cur, ip) || stated_len(ip) != in->len - sizeof(*eth))
		return 0;
	return fold(in->sum + inner_sum(eth, ip)) == 0xffff;
}

/* The inner headers behind them. NONE if the packet is from whom it says, and for our VTEP. */
static __always_inline enum reason read_inner(const struct node *self, struct cursor *cur,
					      struct arrival *in)
{
	struct ethhdr *eth;
	enum reason why = take_headers(cur, &eth, &in->inner.ip);

	/* The kernel would take the tag off and believe the packet behind it. */
	if (why == REASON_OTHER_FAMILY && is_vlan(eth->h_proto))
		return REASON_TAGGED;
	if (!why)
		why = check_source(self, in->host, addr_at(&in->inner.ip->saddr));
	if (why)
		return why;
	/* The device drops what is not for its MAC, and its own MAC as a loop. */
	if (!same_mac(eth->h_dest, self->vtep_mac) || same_mac(eth->h_source, self->vtep_mac))
		return REASON_INNER_MAC;
	if (!in->held && !is_sum_right(*cur, eth, in))
		in->held = REASON_OUTER_CHECKSUM;
	/* Programs behind ours have to see the packet, as it came. */
	in->believed = !in->held && in->link_len && !(self->flags & NODE_F_OTHERS_BEHIND);
	if (bypasses(self) && !(self->flags & NODE_F_OTHERS_BEHIND))
		return REASON_NONE;
	return in->held ? in->held : REASON_BYPASS_OFF;
}

/* Of such a packet, what follows. NONE if it is for a container that we know: then there is
 * a flow to be signed or bypassed. `skb`: 0 in XDP. */
static __always_inline enum reason read_flow(const struct node *self, struct cursor *cur,
					     struct __sk_buff *skb, struct arrival *in)
{
	const iphdr_t *ip = in->inner.ip;
	__u32 len = in->len - sizeof(struct ethhdr);
	__u32 gso_size = skb ? skb->gso_size : 0;
	enum reason why = ip_obstacle(ip, len, gso_size);

	if (why)
		return why;
	if (is_damaged(ip))
		return REASON_INNER_CHECKSUM;
	in->endpoint = endpoint_of(addr_at(&ip->daddr));
	if (!in->endpoint)
		return REASON_NO_ENDPOINT;
	in->tos = ecn_decapsulate(in->outer_tos, tos_of(ip));
	why = take_flow(cur, DIR_IN, in->endpoint->ifindex, len, &in->inner);
	if (why)
		return why;
	/* Whatever path it takes, conntrack sees it. After XDP has, from_wire does this. */
	if (in->inner.l4.control && skb)
		forget_flow(&in->inner.key);
	/* A peer may have a larger MTU. The bridge would refuse it and send ICMP. */
	return oversize(self, &in->inner, len, gso_size) ? REASON_OVERSIZE : REASON_NONE;
}

/* Is there no such interface any more? What is redirected there would be lost, while the
 * kernel path may reach who has taken the address over: the agent is not so quick. Of all
 * that bpf_check_mtu() tells, only whether it has found the interface counts. */
static __always_inline int port_gone(void *ctx, __u32 ifindex)
{
	__u32 mtu = 0;

	return bpf_check_mtu(ctx, ifindex, &mtu, 0, 0) < 0;
}

/* May it bypass? NONE, or why not. `ctx`: of the program. */
static __always_inline enum reason admit(const struct node *self, struct arrival *in, void *ctx)
{
	enum reason why;

	if (in->tos < 0 && !in->inner.l4.control)
		return REASON_ECN;
	why = may_bypass(self, &in->inner);
	if (!why && port_gone(ctx, in->endpoint->ifindex))
		why = REASON_NO_ENDPOINT;
	return why;
}

/* The inner IP header as the container gets it. */
static __always_inline void route(struct frame_header *header, const struct arrival *in)
{
	header->ip = *in->inner.ip;
	ip_decrease_ttl(&header->ip);
	ip_set_tos(&header->ip, in->tos);
	if (!is_none(&in->inner.approval.to.addr))
		translate_ip(&header->ip, DIR_IN, &in->inner.approval.to);
}

static __always_inline void credit(struct peer_stats *stats, __u32 packets, __u32 bytes)
{
	stats->rx_packets += packets;
	stats->rx_bytes += bytes;
}

/* Not 0: the kernel has refused. What a NIC has summed of the packet (CHECKSUM_COMPLETE) goes on to be
 * right: the header of IPv4 always sums up to nothing, that of IPv6 does not. */
static __always_inline long store_headers(struct __sk_buff *skb, struct frame_header *header)
{
	if (FAMILY == 4)
		return bpf_skb_store_bytes(skb, 0, header, sizeof(*header), 0);
	if (bpf_skb_store_bytes(skb, 0, &header->eth, sizeof(header->eth), 0))
		return -1;
	return bpf_skb_store_bytes(skb, sizeof(header->eth), &header->ip, sizeof(header->ip),
				   BPF_F_RECOMPUTE_CSUM);
}

/* Take the tunnel off a packet behind `link_len` bytes of the link's header, and put `header` in
 * the place of that and of the inner IP header. NONE, or why not: NO_ROOM, and nothing has changed. */
static __always_inline enum reason unwrap(struct __sk_buff *skb, struct frame_header *header,
					  __u32 link_len)
{
	if (bpf_skb_adjust_room(skb, -(int)TUNNEL_LEN, BPF_ADJ_ROOM_MAC, DECAP_FLAGS))
		return REASON_NO_ROOM;
	/* Ethernet to the container, on whatever it came. */
	if (!link_len && bpf_skb_change_head(skb, sizeof(struct ethhdr), 0))
		return REASON_ABORTED;
	/* The level that the NIC verified was the tunnel's. */
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	return store_headers(skb, header) ? REASON_ABORTED : REASON_NONE;
}

static __always_inline enum reason decap(struct __sk_buff *skb, const struct arrival *in)
{
	const struct translation *to = &in->inner.approval.to;
	const struct endpoint *endpoint = in->endpoint;
	struct frame_header header = {};
	enum reason why;

	/* Copied before the packet moves: adjust_room invalidates `ip`. */
	route(&header, in);
	__builtin_memcpy(header.eth.h_dest, endpoint->mac, ETH_ALEN);
	__builtin_memcpy(header.eth.h_source, endpoint->bridge_mac, ETH_ALEN);
	header.eth.h_proto = bpf_htons(ETH_P_FAMILY);
	why = unwrap(skb, &header, in->link_len);
	if (why)
		return why;
	if (!is_none(&to->addr) && translate_l4(skb, sizeof(header), &in->inner.key, to))
		return REASON_ABORTED;
	bpf_redirect_peer(endpoint->ifindex, 0);
	return REASON_DECAP;
}

/* Bytes that have to be linear. */
#define ARRIVING_LEN (sizeof(struct overlay_header) + sizeof(struct tcphdr))

/* Is there VXLAN for this host behind the IP header that is to be `offset` bytes from the start? */
static __always_inline int is_vxlan_at(struct __sk_buff *skb, const struct node *self, __u32 offset)
{
	iphdr_t ip;
	__be16 port;
	__u32 udp;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || !is_at(&ip.daddr, &self->host))
		return 0;
	udp = udp_offset(skb, &ip, offset);
	if (!udp || bpf_skb_load_bytes(skb, udp + __builtin_offsetof(struct udphdr, dest), &port,
				       sizeof(port)))
		return 0;
	return port == self->port;
}

/* Can a packet that is not linear be VXLAN for this host? Asked by copying, which needs no
 * memory. As in read_outer(): what is too short for that, the kernel takes for nothing. */
static __always_inline int perhaps_ours(struct __sk_buff *skb, const struct node *self)
{
	__be16 proto;

	if (self->flags & NODE_F_NO_ETHERNET && is_vxlan_at(skb, self, 0))
		return 1;
	if (bpf_skb_load_bytes(skb, __builtin_offsetof(struct ethhdr, h_proto), &proto, sizeof(proto)))
		return 0;
	if (is_vlan(proto))
		return skb->vlan_present; /* what is behind them is not worth the search */
	return proto == bpf_htons(ETH_P_FAMILY) && is_vxlan_at(skb, self, sizeof(struct ethhdr));
}

/* `start`: of the packet, as much of it as could be had; `in`: what has been read of it, empty
 * before. */
static __always_inline enum reason wire_to_container(struct __sk_buff *skb, struct cursor start,
						     struct arrival *in)
{
	struct cursor cur = start;
	struct node *self = this_node();
	__u32 packets = packets_of(skb);
	enum reason why;

	if (!self)
		return REASON_NOT_CONFIGURED;
	/* The tag is beside the data: the packet belongs to a VLAN device above us. But
	 * tag 0 is only a priority, and the kernel goes on behind it. */
	if (skb->vlan_present && skb->vlan_tci & VLAN_VID)
		return REASON_VLAN;
	/* Seen because the interface is promiscuous; ip_rcv() would not take it. */
	if (skb->pkt_type != PACKET_HOST)
		return REASON_NOT_OVERLAY;
	in->link_len = find_link_len(skb, self, start);
	why = read_outer(self, &cur, skb->len, skb, in);
	if (!why)
		why = read_inner(self, &cur, in);
	/* The kernel may have the memory a moment later, and let in what was not checked. */
	if (why == REASON_TRUNCATED && !is_linear(skb, &start, ARRIVING_LEN) && perhaps_ours(skb, self))
		return REASON_UNREADABLE;
	if (why)
		return why;
	why = read_flow(self, &cur, skb, in);
	/* In one test: after two, each way out of read_flow() sets all that would follow. */
	if (why || in->held)
		return in->held ? in->held : why;
	in->inner.hash = flow_hash(&in->inner.key, self->flow_seed);
	/* adjust_room leaves SKB_GSO_UDP_TUNNEL set, for which the container's UDP drops
	 * segments; its TCP does not mind. */
	if (proto_of(in->inner.ip) == IPPROTO_UDP && skb->gso_size)
		why = REASON_UDP_GSO;
	else
		why = admit(self, in, skb);
	if (!why)
		why = decap(skb, in);
	if (why != REASON_DECAP) {
		if (in->inner.l4.accepts || why == REASON_FLOW_UNKNOWN || why == REASON_FLOW_EXPIRED)
			note_packet(&in->inner);
		bpf_set_hash(skb, in->inner.hash);
		return why;
	}
	use_approval(&in->inner, packets);
	credit(in->stats, packets, in->len);
	return why;
}

#endif
