/* SPDX-License-Identifier: GPL-2.0 */
/* From a container's port to the uplink. */
#ifndef OVNET_ENCAP_H
#define OVNET_ENCAP_H

#include "ecn.h"
#include "flow.h"
#include "vxlan.h"

/* FIXED_GSO: segments keep their size; UDP GSO is refused without it. */
#define ENCAP_FLAGS (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET |         \
		     BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |      \
		     BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethhdr)) |                  \
		     BPF_F_ADJ_ROOM_ENCAP_L2_ETH)

/* Everything in front of the container's packet; `header->inner_ip` is filled already.
 * `len`: of the container's frame. */
static __always_inline void fill_header(struct overlay_header *header, const struct node *self,
					const struct peer *peer, __u32 hash, __u32 len)
{
	__u32 udp_len = len + sizeof(struct udphdr) + sizeof(struct vxlanhdr);

	header->eth.h_proto = bpf_htons(ETH_P_IP); /* MACs: the neighbour code writes them */
	header->ip.version = 4;
	header->ip.ihl = 5;
	header->ip.tos = ecn_encapsulate(header->inner_ip.tos);
	header->ip.tot_len = bpf_htons(udp_len + sizeof(struct iphdr));
	header->ip.id = bpf_get_prandom_u32(); /* DF is clear, so RFC 6864 wants it to vary */
	header->ip.ttl = 64;
	header->ip.protocol = IPPROTO_UDP;
	header->ip.saddr = self->host;
	header->ip.daddr = peer->host;
	header->ip.check = ip_checksum(&header->ip);
	header->udp.source = source_port(self, hash);
	header->udp.dest = peer->port;
	header->udp.len = bpf_htons(udp_len); /* checksum 0: RFC 7348, 5 */
	header->vxlan.flags = VXLAN_FLAGS;
	header->vxlan.vni = bpf_htonl(peer->vni << 8);
	__builtin_memcpy(header->inner_eth.h_dest, peer->vtep_mac, ETH_ALEN);
	__builtin_memcpy(header->inner_eth.h_source, self->vtep_mac, ETH_ALEN);
	header->inner_eth.h_proto = bpf_htons(ETH_P_IP);
}

/* Hand the finished packet to the uplink; the neighbour code writes the outer MACs. */
static __always_inline void send_to(const struct peer *peer)
{
	struct bpf_redir_neigh hop = { .nh_family = AF_INET };

	hop.ipv4_nh = peer->next_hop;
	if (peer->next_hop)
		redirect_neigh(peer->ifindex, &hop, sizeof(hop), 0);
	else
		redirect_neigh(peer->ifindex, 0, 0, 0);
}

static __always_inline enum reason encap(struct __sk_buff *skb, const struct node *self,
					 const struct peer *peer, const struct iphdr *ip,
					 __u32 hash, const struct approval *approval)
{
	struct overlay_header header = {};
	struct peer_stats *stats;
	__u32 len = skb->len, packets = packets_of(skb);

	/* Copied before the packet moves: adjust_room invalidates `ip`. Written with
	 * store_bytes, not through pointers: a program that writes through pointers
	 * gets a prologue that copies every cloned skb, and local TCP sends clones. */
	header.inner_ip = *ip;
	ip_decrease_ttl(&header.inner_ip);
	fill_header(&header, self, peer, hash, len);
	if (bpf_skb_adjust_room(skb, TUNNEL_LEN, BPF_ADJ_ROOM_MAC, ENCAP_FLAGS))
		return REASON_NO_ROOM;
	if (bpf_skb_store_bytes(skb, 0, &header, sizeof(header), 0))
		return REASON_ABORTED;
	use_approval(approval, packets);
	/* What netfilter gave the packet that was approved: qdiscs and policy routing of the
	 * uplink go by them. */
	if (approval->flow) {
		skb->mark = approval->flow->mark;
		skb->priority = approval->flow->priority;
	}
	stats = stats_of(peer->host);
	if (stats) {
		stats->tx_packets += packets;
		stats->tx_bytes += len;
	}
	send_to(peer);
	return REASON_ENCAP;
}

static __always_inline enum reason container_to_wire(struct __sk_buff *skb)
{
	struct cursor cur = cursor_of(skb, sizeof(struct ethhdr) + sizeof(struct iphdr) +
					   sizeof(struct tcphdr));
	struct node *self = this_node();
	struct approval approval = {};
	struct flow_key key = {};
	struct endpoint *source;
	struct l4 l4 = {};
	struct peer *peer;
	struct ethhdr *eth;
	struct iphdr *ip;
	enum reason why;
	__u32 hash;

	if (!self)
		return REASON_NOT_CONFIGURED;
	if (skb->vlan_present)
		return REASON_VLAN;
	eth = take_eth(&cur);
	if (!eth)
		return REASON_TRUNCATED;
	if (eth->h_proto == bpf_htons(ETH_P_ARP))
		heed_arp(&cur, skb->ifindex);
	if (eth->h_proto != bpf_htons(ETH_P_IP))
		return REASON_NOT_IPV4;
	ip = take_ip(&cur);
	if (!ip)
		return REASON_TRUNCATED;
	peer = peer_of(self, ip->daddr);
	if (!peer)
		return REASON_NOT_OVERLAY;
	if (self->bypass == BYPASS_OFF)
		return REASON_BYPASS_OFF;
	why = ip_obstacle(ip, skb->len - sizeof(*eth));
	if (why)
		return why;
	/* ip_rcv() would drop it; we would forward it, damage and all. */
	if (ip_checksum(ip))
		return REASON_INNER_CHECKSUM;
	source = endpoint_of(ip->saddr);
	/* Unknown yet, another container's address, or a MAC that is for the bridge to judge. */
	if (!source || !same_mac(eth->h_source, source->mac))
		return REASON_NO_ENDPOINT;
	if (source->ifindex != skb->ifindex) {
		/* The bridge has learned from this frame that its MAC has moved here. */
		forget_endpoint(ip->saddr);
		return REASON_NO_ENDPOINT;
	}
	if (!same_mac(eth->h_dest, source->bridge_mac))
		return REASON_NOT_ROUTED;
	why = take_flow(&cur, ip, DIR_OUT, skb->ifindex, &key, &l4);
	if (why)
		return why;
	/* Whatever else there is: conntrack sees it. */
	if (l4.control)
		forget_flow(&key);
	if (peer->flags & PEER_F_KERNEL_PATH)
		return REASON_PEER_KERNEL_PATH;
	if (oversize(self, &l4, skb->len - sizeof(*eth), skb->gso_size))
		return REASON_OVERSIZE;
	hash = flow_hash(&key, self->flow_seed);
	if (l4.control)
		why = REASON_TCP_CONTROL;
	else if (self->bypass == BYPASS_LEARNED)
		why = check_approval(self, &key, &approval);
	if (!why)
		why = encap(skb, self, peer, ip, hash, &approval);
	if (why != REASON_ENCAP)
		bpf_set_hash(skb, hash);
	return why;
}

#endif
