/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The tunnel gear: routing, netfilter and the bridge see a packet as ever, and only the tunnel
 * header is put on and taken off by eBPF instead of the vxlan device. The device would send the
 * packet through IP stack and netfilter a second time, with its headers on.
 *
 * Both halves come behind another program that has left the packet to the kernel path, and count
 * for themselves: what that one has found says why the packet does not bypass.
 */
#ifndef OVNET_TUNNEL_H
#define OVNET_TUNNEL_H

#include "decap.h"
#include "encap.h"

/* Length of the IP and L4 headers that each segment of a super-packet has; 0: of no kind that
 * we know. The cursor stands behind `ip`. */
static __always_inline __u32 segment_headers(struct cursor *cur, const iphdr_t *ip)
{
	struct tcphdr *tcp;

	if (has_options(ip))
		return 0;
	if (proto_of(ip) == IPPROTO_UDP)
		return sizeof(*ip) + sizeof(struct udphdr);
	tcp = proto_of(ip) == IPPROTO_TCP ? take(cur, sizeof(*tcp)) : 0;
	return tcp ? sizeof(*ip) + tcp->doff * 4 : 0;
}

/* Does it fit the overlay, whole or as its segments, with `headers` bytes of headers each? And can we
 * compute its outer checksum? NONE, or why not. Whoever sends through a packet socket asks no MTU,
 * and the device would send it in outer fragments. */
static __always_inline enum reason check_size(const struct node *self, struct cursor *cur,
					      const iphdr_t *ip, struct __sk_buff *skb,
					      __u32 *headers)
{
	__u32 len = skb->len - sizeof(struct ethhdr);

	if (OUTER_CHECKED && (!has_checksum(*cur, ip) || ip_total(ip, len, skb->gso_size) != len))
		return REASON_OUTER_CHECKSUM;
	if (skb->gso_size) {
		*headers = segment_headers(cur, ip);
		if (!*headers)
			return REASON_PROTOCOL;
		len = *headers + skb->gso_size;
	}
	return len > self->mtu ? REASON_OVERSIZE : REASON_NONE;
}

/* Would the vxlan device send a frame with these headers to `peer`, and can we? NONE, or why
 * not. */
static __always_inline enum reason check_peer(const struct node *self, const struct ethhdr *eth,
					      const struct peer *peer)
{
	if (!peer)
		return REASON_NOT_OVERLAY;
	/* It goes by the MAC address, not by that of IP. */
	if (!same_mac(eth->h_dest, peer->vtep_mac) || !same_mac(eth->h_source, self->vtep_mac))
		return REASON_INNER_MAC;
	/* Without a next hop bpf_redirect_neigh puts a route of its own into the skb, and, before
	 * Linux 6.18, leaks the one that the packet came here by. */
	if (peer->flags & PEER_F_KERNEL_PATH || is_none(&peer->next_hop))
		return REASON_PEER_KERNEL_PATH;
	return REASON_NONE;
}

static __always_inline int is_no_mac(const __u8 *mac)
{
	return !(mac[0] | mac[1] | mac[2] | mac[3] | mac[4] | mac[5]);
}

/* Is the next hop's MAC address known? NONE, or why the device has to send. With a next hop
 * bpf_redirect_neigh leaves the packet the route that it came here by, which is about the inner
 * addresses: if it had to wait for an answer to ARP it would go on by that one
 * (neigh_update). What comes from a port has no route yet, so the bypass need not ask. */
static __always_inline enum reason check_neighbour(struct __sk_buff *skb, const struct node *self,
						   const struct peer *peer)
{
	struct bpf_fib_lookup way = {};
	struct addr hop;
	long result;

	way.family = AF_FAMILY;
	way.l4_protocol = IPPROTO_UDP;
	way.dport = peer->port;
	way.ifindex = peer->ifindex;
	/* Unions with those of IPv4. */
	__builtin_memcpy(way.ipv6_src, &self->host, sizeof(self->host));
	__builtin_memcpy(way.ipv6_dst, &peer->host, sizeof(peer->host));
	result = bpf_fib_lookup(skb, &way, sizeof(way), BPF_FIB_LOOKUP_OUTPUT);
	if (result == BPF_FIB_LKUP_RET_NO_NEIGH)
		return REASON_NO_NEIGHBOUR;
	/* The agent is not so quick to learn of another route. */
	hop = addr_at(way.ipv6_dst);
	if (result || way.ifindex != peer->ifindex || !same_addr(&hop, &peer->next_hop))
		return REASON_PEER_KERNEL_PATH;
	/* Before Linux 6.3 an entry without an address yet is a neighbour as well. */
	return is_no_mac(way.dmac) ? REASON_NO_NEIGHBOUR : REASON_NONE;
}

/* At the egress of the vxlan device. `packets`: that it counts as. */
static __always_inline enum reason netfilter_to_wire(struct __sk_buff *skb, __u32 packets)
{
	struct cursor cur = cursor_of(skb, INNER_LEN);
	struct overlay_header header = {};
	struct node *self = this_node();
	__u32 len = skb->len, headers = 0;
	struct ethhdr *eth;
	struct peer *peer;
	iphdr_t *ip;
	enum reason why;

	if (!self)
		return REASON_NOT_CONFIGURED;
	if (skb->vlan_present)
		return REASON_VLAN;
	why = take_headers(&cur, &eth, &ip);
	if (why)
		return why;
	peer = peer_of(self, addr_at(&ip->daddr));
	why = check_peer(self, eth, peer);
	/* The peer's entry is the way of packets without such a mark. */
	if (!why && skb->mark & self->routing_marks)
		why = REASON_POLICY_ROUTED;
	if (!why)
		why = check_size(self, &cur, ip, skb, &headers);
	if (why)
		return why;
	header.inner_ip = *ip;
	why = check_neighbour(skb, self, peer);
	if (why)
		return why;
	why = wrap(skb, self, peer, bpf_get_hash_recalc(skb), len, headers, &header);
	if (why)
		return why;
	credit_sent(peer->host, packets, len);
	send_to(peer);
	return REASON_TUNNEL_ENCAP;
}

/* Does a connection of this host's own take a TCP packet with these headers? Then no one else
 * gets it. */
static __always_inline int host_takes(struct __sk_buff *skb, const iphdr_t *ip,
				      const struct tcphdr *tcp)
{
	/* As struct bpf_sock_tuple has it, of either family. */
	struct {
		struct addr saddr, daddr;
		__be16 sport, dport;
	} tuple = { addr_at(&ip->saddr), addr_at(&ip->daddr), tcp->source, tcp->dest };
	struct bpf_sock *sock;
	int connected;

	sock = bpf_skc_lookup_tcp(skb, (void *)&tuple, sizeof(tuple), BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return 0;
	connected = sock->state != BPF_TCP_LISTEN;
	bpf_sk_release(sock);
	return connected;
}

/* Has the packet neither data nor anything that must not overtake them? */
static __always_inline int is_bare(const iphdr_t *ip, const struct tcphdr *tcp)
{
	return stated_len(ip) == sizeof(*ip) + tcp->doff * 4 && !tcp->rst;
}

/* May the tunnel be taken off a packet for `ip->daddr` here? NONE, or why not. The cursor stands
 * behind `ip`.
 *
 * adjust_room leaves on it that a tunnel is around it: skb->encapsulation and SKB_GSO_UDP_TUNNEL.
 * Who sends it on, through a NIC or a tunnel of another kind, may take the outermost of its
 * headers for the tunnel's, so it has to be for this node. And a bridge, which says of itself that
 * it can do no offload for what is in a tunnel, has super-packets cut to pieces. So these
 * are the device's, unless the host itself takes them: by its connections, for an address of its
 * own may also stand for someone outside, whom it masquerades. With them go data, and
 * RST, of TCP: the device has a queue of its own, and they would overtake one another. */
static __always_inline enum reason check_target(const struct node *self, struct cursor *cur,
						const iphdr_t *ip, struct __sk_buff *skb)
{
	struct addr daddr = addr_at(&ip->daddr), subnet = masked(&daddr, &self->subnet_mask);
	struct tcphdr *tcp;

	if (!same_addr(&subnet, &self->subnet))
		return REASON_NOT_LOCAL;
	if (proto_of(ip) != IPPROTO_TCP)
		return skb->gso_size ? REASON_UDP_GSO : REASON_NONE;
	if (has_options(ip) || is_fragment(ip))
		return REASON_SUPER_PACKET;
	tcp = take(cur, sizeof(*tcp));
	if (!tcp)
		return REASON_SUPER_PACKET;
	if (is_bare(ip, tcp) && !skb->gso_size)
		return REASON_NONE;
	if (endpoint_of(daddr))
		return REASON_SUPER_PACKET;
	return host_takes(skb, ip, tcp) ? REASON_NONE : REASON_SUPER_PACKET;
}

/* At the ingress of the uplink: a packet whose sender is believed, without obstacles outside. */
static __always_inline enum reason wire_to_netfilter(struct __sk_buff *skb, __u32 packets,
						     const struct arrival *in)
{
	/* Read already, and linear. What has been found of it would not outlast a try to decapsulate. */
	struct cursor cur = cursor(skb->data, skb->data_end);
	struct frame_header header = {};
	struct peer_stats *stats = in->stats;
	struct node *self = this_node();
	struct ethhdr *eth;
	iphdr_t *ip;
	enum reason why;
	int tos;

	/* Whose sender is believed has them, which the verifier does not see. */
	barrier_var(stats);
	if (!stats || !self || !take(&cur, TUNNEL_LEN))
		return REASON_TRUNCATED;
	why = take_headers(&cur, &eth, &ip);
	if (why)
		return why;
	header.eth = *eth;
	header.ip = *ip;
	tos = ecn_decapsulate(in->outer_tos, tos_of(ip));
	if (tos < 0)
		return REASON_ECN;
	why = check_target(self, &cur, ip, skb);
	if (!why && port_gone(skb, self->tunnel_ifindex))
		why = REASON_NO_DEVICE;
	if (why)
		return why;
	ip_set_tos(&header.ip, tos);
	why = unwrap(skb, &header, sizeof(*eth));
	if (why)
		return why;
	credit(stats, packets, in->len);
	bpf_redirect(self->tunnel_ifindex, BPF_F_INGRESS);
	return REASON_TUNNEL_DECAP;
}

static __always_inline int tunnels(void)
{
	struct node *self = this_node();

	return self && self->tunnel_ifindex;
}

#endif
