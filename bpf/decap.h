/* SPDX-License-Identifier: GPL-2.0 */
/* From the uplink to a container's port. */
#ifndef OVNET_DECAP_H
#define OVNET_DECAP_H

#include "ecn.h"
#include "flow.h"
#include "vxlan.h"

/* 15 words of header at the most, 5 of them fixed (RFC 791). */
#define MAX_OPTIONS 40

#define DECAP_FLAGS (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET)

/* What decap writes: the container's Ethernet header, and its changed IP header. */
struct inner_header {
	struct ethhdr eth;
	struct iphdr  ip;
} __attribute__((packed, aligned(2)));

/* Has the NIC or GRO verified the outer UDP checksum? GRO verifies before it merges, and
 * marks the merged packet as it marks one that this machine sends: CHECKSUM_PARTIAL, which
 * bpf_csum_level() does not tell from unverified. udp_rcv() takes both unseen. */
static __always_inline int checksum_verified(struct __sk_buff *skb)
{
	return skb->gso_size || bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) >= 0;
}

/* What to do with a packet of nobody that we know: refuse it, but only if we know all. */
static __always_inline enum reason nobodys(const struct node *self, enum reason refusal)
{
	return self->flags & NODE_F_PEERS_INCOMPLETE ? REASON_PEERS_INCOMPLETE : refusal;
}

/* May `host` send packets with this inner source? An overlay is a trust boundary, so
 * this holds for what the kernel path carries too. 0, or why not, or why only there. */
static __always_inline enum reason check_source(const struct node *self, __be32 host,
						__be32 inner_source)
{
	struct peer *peer = peer_of(self, inner_source);

	/* Host 0: leases of several hosts lie in this block; being a peer must do. */
	if (peer && peer->host != host && peer->host)
		return REASON_SPOOFED_SOURCE;
	if (peer)
		return peer->flags & PEER_F_KERNEL_PATH ? REASON_PEER_KERNEL_PATH : 0;
	if ((inner_source & self->network_mask) != self->network)
		return REASON_FOREIGN_SOURCE;
	if ((inner_source & self->subnet_mask) == self->subnet)
		return REASON_SPOOFED_SOURCE; /* one of our own */
	return nobodys(self, REASON_SPOOFED_SOURCE);
}

static __always_inline enum reason decap(struct __sk_buff *skb, const struct endpoint *endpoint,
					 const struct iphdr *ip, int tos)
{
	struct inner_header header = {};

	/* Copied before the packet moves: adjust_room invalidates `ip`. */
	header.ip = *ip;
	ip_decrease_ttl(&header.ip);
	ip_set_tos(&header.ip, tos);
	__builtin_memcpy(header.eth.h_dest, endpoint->mac, ETH_ALEN);
	__builtin_memcpy(header.eth.h_source, endpoint->bridge_mac, ETH_ALEN);
	header.eth.h_proto = bpf_htons(ETH_P_IP);
	if (bpf_skb_adjust_room(skb, -(int)TUNNEL_LEN, BPF_ADJ_ROOM_MAC, DECAP_FLAGS))
		return REASON_NO_ROOM;
	/* The level that the NIC verified was the tunnel's. */
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	if (bpf_skb_store_bytes(skb, 0, &header, sizeof(header), 0))
		return REASON_ABORTED;
	bpf_redirect_peer(endpoint->ifindex, 0);
	return REASON_DECAP;
}

/* The inner packet, with the cursor behind the VXLAN header of a known peer. */
static __always_inline enum reason deliver(struct __sk_buff *skb, const struct node *self,
					   struct cursor *cur, const struct iphdr *outer,
					   struct peer_stats *stats, enum reason held)
{
	__u32 len = skb->len - TUNNEL_LEN, packets = packets_of(skb);
	struct ethhdr *eth = take_eth(cur);
	struct endpoint *endpoint;
	struct flow_key key = {};
	__u8 outer_tos = outer->tos;
	struct l4 l4 = {};
	struct iphdr *ip;
	enum reason why;
	int tos;

	if (!eth)
		return REASON_TRUNCATED;
	/* The kernel would take the tag off and believe the packet behind it. */
	if (is_vlan(eth->h_proto))
		return REASON_TAGGED;
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return REASON_NOT_IPV4;
	ip = take_ip(cur);
	if (!ip)
		return REASON_TRUNCATED;
	why = check_source(self, outer->saddr, ip->saddr);
	if (why)
		return why;
	/* The device drops what is not for its MAC, and its own MAC as a loop. */
	if (!same_mac(eth->h_dest, self->vtep_mac) || same_mac(eth->h_source, self->vtep_mac))
		return REASON_INNER_MAC;
	if (self->bypass == BYPASS_OFF)
		return REASON_BYPASS_OFF;
	if (held)
		return held;
	why = ip_obstacle(ip, len - sizeof(*eth));
	if (why)
		return why;
	if (ip_checksum(ip))
		return REASON_INNER_CHECKSUM;
	endpoint = endpoint_of(ip->daddr);
	if (!endpoint)
		return REASON_NO_ENDPOINT;
	why = take_flow(cur, ip, DIR_IN, endpoint->ifindex, &key, &l4);
	if (why)
		return why;
	/* A peer may have a larger MTU. The bridge would refuse it and send ICMP. */
	if (oversize(self, &l4, len - sizeof(*eth), skb->gso_size))
		return REASON_OVERSIZE;
	tos = ecn_decapsulate(outer_tos, ip->tos);
	if (l4.control) {
		forget_flow(&key);
		why = REASON_TCP_CONTROL;
	} else if (ip->protocol == IPPROTO_UDP && skb->gso_size) {
		/* adjust_room leaves SKB_GSO_UDP_TUNNEL set, for which the container's
		 * UDP drops segments; its TCP does not mind. */
		why = REASON_UDP_GSO;
	} else if (tos < 0) {
		why = REASON_ECN;
	} else if (self->bypass == BYPASS_LEARNED) {
		why = check_approval(self, &key, packets, 0);
	}
	if (why) {
		bpf_set_hash(skb, flow_hash(&key, self->flow_seed));
		return why;
	}
	why = decap(skb, endpoint, ip, tos);
	if (why == REASON_DECAP) {
		stats->rx_packets += packets;
		stats->rx_bytes += len;
	}
	return why;
}

static __always_inline enum reason wire_to_container(struct __sk_buff *skb)
{
	struct cursor cur = cursor_of(skb, sizeof(struct overlay_header) + sizeof(struct tcphdr));
	struct node *self = this_node();
	struct peer_stats *stats;
	struct vxlanhdr *vxlan;
	struct udphdr *udp;
	struct ethhdr *eth;
	struct iphdr *ip;
	enum reason held = 0;
	__u32 options;

	if (!self)
		return REASON_NOT_CONFIGURED;
	/* The tag is beside the data: the packet belongs to a VLAN device above us. But
	 * tag 0 is only a priority, and the kernel goes on behind it. */
	if (skb->vlan_present && skb->vlan_tci & VLAN_VID)
		return REASON_VLAN;
	/* Seen because the interface is promiscuous; ip_rcv() would not take it. */
	if (skb->pkt_type != PACKET_HOST)
		return REASON_NOT_OVERLAY;
	eth = take_eth(&cur);
	ip = take_ip(&cur);
	if (!eth || !ip)
		return REASON_TRUNCATED;
	if (skb->vlan_present && is_vlan(eth->h_proto))
		return REASON_TAGGED;
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return REASON_NOT_IPV4;
	if (ip->version != 4 || ip->protocol != IPPROTO_UDP || ip->daddr != self->host)
		return REASON_NOT_OVERLAY;
	/* Without its first fragment, which is the one that shows the port, the rest
	 * dies in reassembly. So the source check cannot be dodged by fragmenting. */
	if (ip->frag_off & bpf_htons(IP_OFFSET))
		return REASON_NOT_OVERLAY;
	options = ip->ihl * 4 - sizeof(*ip);
	if (options > MAX_OPTIONS || !take(&cur, options))
		return REASON_TRUNCATED;
	udp = take_udp(&cur);
	if (!udp)
		return REASON_TRUNCATED;
	if (udp->dest != self->port)
		return REASON_NOT_OVERLAY;
	if (ip->frag_off & bpf_htons(IP_MF))
		return REASON_OUTER_FRAGMENT;
	if (options)
		return REASON_OUTER_OPTIONS;
	/* For the kernel path to sort out, but not before the source check. */
	if (bpf_ntohs(ip->tot_len) != skb->len - sizeof(*eth) ||
	    bpf_ntohs(udp->len) != bpf_ntohs(ip->tot_len) - sizeof(*ip))
		held = REASON_TRUNCATED; /* padding, or a lie */
	else if (ip_checksum(ip) || (udp->check && !checksum_verified(skb)))
		held = REASON_OUTER_CHECKSUM; /* the kernel can, and we cannot */
	else if (skb->vlan_present)
		held = REASON_VLAN;
	vxlan = take(&cur, sizeof(*vxlan));
	if (!vxlan)
		return REASON_TRUNCATED;
	/* Another vxlan device may share the port with another VNI. */
	if (vxlan->flags != VXLAN_FLAGS || vxlan->vni != bpf_htonl(self->vni << 8))
		return REASON_VXLAN_HEADER;
	stats = stats_of(ip->saddr);
	if (!stats)
		return nobodys(self, REASON_UNKNOWN_VTEP);
	return deliver(skb, self, &cur, ip, stats, held);
}

#endif
