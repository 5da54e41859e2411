/* SPDX-License-Identifier: GPL-2.0 */
/* What only IPv6 has or does so, of ip.h and all that is above it: the functions of ipv4.h. */
#ifndef OVNET_IPV6_H
#define OVNET_IPV6_H

#include <linux/icmpv6.h>
#include <linux/ipv6.h>

typedef struct ipv6hdr iphdr_t;

#define ETH_P_FAMILY	    ETH_P_IPV6
#define AF_FAMILY	    AF_INET6
#define REASON_OTHER_FAMILY REASON_NOT_IPV6
#define ENCAP_L3_FAMILY	    BPF_F_ADJ_ROOM_ENCAP_L3_IPV6

#define IPPROTO_ECHO IPPROTO_ICMPV6
#define ECHO_REQUEST ICMPV6_ECHO_REQUEST
#define ECHO_REPLY   ICMPV6_ECHO_REPLY

#define IP_MAX_LEN (0xffff + sizeof(iphdr_t)) /* of a packet: the header does not count itself */

/* Extension headers that we look behind: the kernel looks behind any number. */
#define MAX_EXTENSIONS 8

/* How each of them begins. */
struct extension {
	__u8   nexthdr;
	__u8   len;    /* units of 8 bytes behind the first; of AH, of 4 behind the second */
	__be16 offset; /* of a fragment, in units of 8 bytes, and three bits */
};
#define FRAGMENT_LEN	8
#define FRAGMENT_OFFSET 0xfff8

static __always_inline __u8 proto_of(const iphdr_t *ip)
{
	return ip->nexthdr;
}

static __always_inline __u8 tos_of(const iphdr_t *ip)
{
	return ip->priority << 4 | ip->flow_lbl[0] >> 4;
}

static __always_inline __u8 ttl_of(const iphdr_t *ip)
{
	return ip->hop_limit;
}

/* There is no number: the flow label, as far as it says anything, nobody translates. */
static __always_inline __u16 ident_of(const iphdr_t *ip)
{
	return ip->flow_lbl[1] << 8 | ip->flow_lbl[2];
}

static __always_inline __u32 stated_len(const iphdr_t *ip)
{
	return bpf_ntohs(ip->payload_len) + sizeof(*ip);
}

/* As for IPv4. Many a kernel puts a hop-by-hop option (RFC 2675) into what is larger: see has_options(). */
static __always_inline __u32 ip_total(const iphdr_t *ip, __u32 room, __u32 gso_size)
{
	return ip->payload_len || !gso_size ? stated_len(ip) : room;
}

static __always_inline int is_extension(__u8 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_DSTOPTS ||
	       proto == IPPROTO_AH || proto == IPPROTO_FRAGMENT;
}

static __always_inline int is_fragment(const iphdr_t *ip)
{
	return ip->nexthdr == IPPROTO_FRAGMENT;
}

static __always_inline int has_options(const iphdr_t *ip)
{
	return is_extension(ip->nexthdr) && !is_fragment(ip);
}

/* Of a fragment, the first one too, the L4 header is not where it would be. */
static __always_inline int is_later_fragment(const iphdr_t *ip)
{
	return is_fragment(ip);
}

/* There is no checksum. */
static __always_inline int is_damaged(const iphdr_t *ip)
{
	return 0;
}

/* What ip6_forward() does to a header: hop limit down by one. */
static __always_inline void ip_decrease_ttl(iphdr_t *ip)
{
	ip->hop_limit--;
}

static __always_inline void ip_set_tos(iphdr_t *ip, __u8 tos)
{
	ip->priority = tos >> 4;
	ip->flow_lbl[0] = tos << 4 | (ip->flow_lbl[0] & 0xf);
}

static __always_inline void ip_set_addr(iphdr_t *ip, __u16 *place, const struct addr *addr)
{
#pragma unroll
	for (int i = 0; i < ADDR_WORDS; i++) {
		place[2 * i] = addr->word[i];
		place[2 * i + 1] = addr->word[i] >> 16;
	}
}

static __always_inline iphdr_t outer_ip(const struct node *self, const struct peer *peer, __u8 tos,
					__u16 payload)
{
	iphdr_t ip = { .version = 6, .nexthdr = IPPROTO_UDP };

	ip_set_tos(&ip, tos);
	ip.payload_len = bpf_htons(payload);
	ip.hop_limit = peer->ttl;
	__builtin_memcpy(&ip.saddr, &self->host, sizeof(ip.saddr));
	__builtin_memcpy(&ip.daddr, &peer->host, sizeof(ip.daddr));
	return ip;
}

/* Go behind extension headers to the UDP header, which is `*offset` bytes from the start then. NONE, or
 * NOT_OVERLAY if there is none that the kernel would find either; `refused` as below. By copying: they may
 * be as long as the packet. */
static __always_inline enum reason skip_extensions(struct __sk_buff *skb, __u8 proto, __u32 *offset,
						   enum reason *refused)
{
	*refused = REASON_OUTER_OPTIONS;
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		struct extension ext;

		if (proto == IPPROTO_UDP)
			return REASON_NONE;
		if (!is_extension(proto) || bpf_skb_load_bytes(skb, *offset, &ext, sizeof(ext)))
			return REASON_NOT_OVERLAY;
		if (proto == IPPROTO_FRAGMENT) {
			/* Without its first fragment the rest dies in reassembly. */
			if (ext.offset & bpf_htons(FRAGMENT_OFFSET))
				return REASON_NOT_OVERLAY;
			*refused = REASON_OUTER_FRAGMENT;
			*offset += FRAGMENT_LEN;
		} else {
			*offset += proto == IPPROTO_AH ? (ext.len + 2) * 4 : (ext.len + 1) * 8;
		}
		proto = ext.nexthdr;
	}
	return REASON_UNREADABLE;
}

/* As for IPv4. VXLAN for us behind extension headers is refused here, so NONE has none in front. `skb`:
 * 0 in XDP, which leaves them to tc. */
static __always_inline enum reason take_outer_options(struct __sk_buff *skb, struct cursor *cur,
						      const struct node *self, const iphdr_t *ip,
						      __u32 offset, enum reason *refused)
{
	enum reason why;
	__be16 port;

	if (likely(ip->nexthdr == IPPROTO_UDP))
		return REASON_NONE;
	if (!skb || !is_extension(ip->nexthdr))
		return REASON_NOT_OVERLAY;
	offset += sizeof(*ip);
	why = skip_extensions(skb, ip->nexthdr, &offset, refused);
	if (why)
		return why;
	offset += __builtin_offsetof(struct udphdr, dest);
	if (bpf_skb_load_bytes(skb, offset, &port, sizeof(port)) || port != self->port)
		return REASON_NOT_OVERLAY;
	return *refused;
}

static __always_inline __u32 udp_offset(struct __sk_buff *skb, const iphdr_t *ip, __u32 offset)
{
	enum reason refused;

	offset += sizeof(*ip);
	return skip_extensions(skb, ip->nexthdr, &offset, &refused) ? 0 : offset;
}

#endif
