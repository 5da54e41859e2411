/* SPDX-License-Identifier: GPL-2.0 */
/* What only IPv4 has or does so, of ip.h and all that is above it. */
#ifndef OVNET_IPV4_H
#define OVNET_IPV4_H

#include <linux/icmp.h>
#include <linux/ip.h>

typedef struct iphdr iphdr_t;

#define ETH_P_FAMILY	    ETH_P_IP
#define AF_FAMILY	    AF_INET
#define REASON_OTHER_FAMILY REASON_NOT_IPV4
#define ENCAP_L3_FAMILY	    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4

/* The protocol of ping, its messages, and those by which routers answer. */
#define IPPROTO_ECHO IPPROTO_ICMP
#define ECHO_REQUEST ICMP_ECHO
#define ECHO_REPLY   ICMP_ECHOREPLY

#define IP_MF		0x2000
#define IP_OFFSET	0x1fff
#define IP_MAX_LEN	0xffff /* of a packet, with its header */

/* 15 words of header at the most, 5 of them fixed (RFC 791). */
#define MAX_OPTIONS 40

static __always_inline __u8 proto_of(const iphdr_t *ip)
{
	return ip->protocol;
}

static __always_inline __u8 tos_of(const iphdr_t *ip)
{
	return ip->tos;
}

static __always_inline __u8 ttl_of(const iphdr_t *ip)
{
	return ip->ttl;
}

/* What a sender numbers its packets by. */
static __always_inline __u16 ident_of(const iphdr_t *ip)
{
	return ip->id;
}

/* Total length that the header states. */
static __always_inline __u32 stated_len(const iphdr_t *ip)
{
	return bpf_ntohs(ip->tot_len);
}

/* Total length of a packet that has `room` bytes from the IP header on. Segments in one packet
 * may be more than the header can say, which then says 0 (BIG TCP; iph_totlen() of the kernel,
 * which also wants them to be TCP's). */
static __always_inline __u32 ip_total(const iphdr_t *ip, __u32 room, __u32 gso_size)
{
	return ip->tot_len || !gso_size ? stated_len(ip) : room;
}

static __always_inline int has_options(const iphdr_t *ip)
{
	return ip->ihl != 5;
}

static __always_inline int is_fragment(const iphdr_t *ip)
{
	return ip->frag_off & bpf_htons(IP_MF | IP_OFFSET);
}

/* One without the L4 header? */
static __always_inline int is_later_fragment(const iphdr_t *ip)
{
	return ip->frag_off & bpf_htons(IP_OFFSET);
}

/* Checksum of a header without options: what belongs in its checksum field while that is 0, and
 * 0 if the field is right. */
static __always_inline __u16 ip_checksum(const iphdr_t *ip)
{
	return ~fold(sum_of(ip, sizeof(*ip)));
}

/* Would ip_rcv() take it for damaged? */
static __always_inline int is_damaged(const iphdr_t *ip)
{
	return ip_checksum(ip);
}

/* What ip_forward() does to a header: TTL down by one. */
static __always_inline void ip_decrease_ttl(iphdr_t *ip)
{
	__u16 from = bpf_htons(ip->ttl << 8);

	ip->ttl--;
	ip->check = csum_replace(ip->check, from, bpf_htons(ip->ttl << 8));
}

static __always_inline void ip_set_tos(iphdr_t *ip, __u8 tos)
{
	ip->check = csum_replace(ip->check, bpf_htons(ip->tos), bpf_htons(tos));
	ip->tos = tos;
}

/* The outer header of a packet with `payload` bytes behind it. */
static __always_inline iphdr_t outer_ip(const struct node *self, const struct peer *peer, __u8 tos,
					__u16 payload)
{
	iphdr_t ip = { .version = 4, .ihl = 5, .tos = tos, .protocol = IPPROTO_UDP };

	ip.tot_len = bpf_htons(payload + sizeof(ip));
	ip.id = bpf_get_prandom_u32(); /* DF is clear, so RFC 6864 wants it to vary */
	ip.ttl = peer->ttl;
	ip.saddr = self->host.word[0];
	ip.daddr = peer->host.word[0];
	ip.check = ip_checksum(&ip);
	return ip;
}

/* Go behind the options of an outer header, to UDP's. NONE, or whose the packet is; `refused`: why there
 * must be no VXLAN behind, or NONE. `offset`: of the header, from the start of the packet. */
static __always_inline enum reason take_outer_options(struct __sk_buff *skb, struct cursor *cur,
						      const struct node *self, const iphdr_t *ip,
						      __u32 offset, enum reason *refused)
{
	__u32 options;

	/* Without its first fragment, which is the one that shows the port, the rest
	 * dies in reassembly. So the source check cannot be dodged by fragmenting. */
	if (ip->protocol != IPPROTO_UDP || is_later_fragment(ip))
		return REASON_NOT_OVERLAY;
	options = ip->ihl * 4 - sizeof(*ip);
	barrier_var(options); /* or it compares something else than it adds to a pointer */
	if (options > MAX_OPTIONS || !take(cur, options))
		return REASON_TRUNCATED;
	if (is_fragment(ip))
		*refused = REASON_OUTER_FRAGMENT;
	else if (options)
		*refused = REASON_OUTER_OPTIONS;
	return REASON_NONE;
}

/* Where the UDP header begins of a packet whose IP header is `offset` bytes from the start; 0: it has none. */
static __always_inline __u32 udp_offset(struct __sk_buff *skb, const iphdr_t *ip, __u32 offset)
{
	return ip->protocol == IPPROTO_UDP && !is_later_fragment(ip) ? offset + ip->ihl * 4 : 0;
}

/* Another address in one of its two places. */
static __always_inline void ip_set_addr(iphdr_t *ip, __u16 *place, const struct addr *addr)
{
	__be32 word = addr->word[0];

	ip->check = csum_replace(ip->check, place[0], word);
	ip->check = csum_replace(ip->check, place[1], word >> 16);
	place[0] = word;
	place[1] = word >> 16;
}

#endif
