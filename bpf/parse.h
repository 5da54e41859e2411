/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Parsers move a cursor over linear packet data and check every bound. They return
 * the header, or 0 if it is not all there.
 */
#ifndef OVNET_PARSE_H
#define OVNET_PARSE_H

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/udp.h>

struct cursor {
	void *pos;
	void *end;
};

/* Does a cursor at the start of the packet reach over `want` bytes, or all of it? */
static __always_inline int is_linear(const struct __sk_buff *skb, const struct cursor *cur,
				     __u32 want)
{
	return likely(cur->pos + want <= cur->end) || cur->pos + skb->len == cur->end;
}

/* Start at the Ethernet header, with `want` bytes (or the whole packet) linear. A
 * packet may come in fragments of memory; pulling invalidates older pointers. It takes
 * memory, too: without, the cursor stays short, and the packet seems to end where it does. */
static __always_inline struct cursor cursor_of(struct __sk_buff *skb, __u32 want)
{
	struct cursor cur = { (void *)(long)skb->data, (void *)(long)skb->data_end };

	if (is_linear(skb, &cur, want))
		return cur;
	bpf_skb_pull_data(skb, want < skb->len ? want : skb->len);
	cur.pos = (void *)(long)skb->data;
	cur.end = (void *)(long)skb->data_end;
	return cur;
}

static __always_inline void *take(struct cursor *cur, __u32 size)
{
	void *header = cur->pos;

	if (header + size > cur->end)
		return 0;
	cur->pos = header + size;
	return header;
}

#define VLAN_VID 0xfff

static __always_inline int is_vlan(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

/* A GSO packet counts as what it will be on the wire. To be asked before adjust_room,
 * which sets gso_segs to 0. */
static __always_inline __u32 packets_of(const struct __sk_buff *skb)
{
	return skb->gso_segs ? skb->gso_segs : 1;
}

static __always_inline struct ethhdr *take_eth(struct cursor *cur)
{
	return take(cur, sizeof(struct ethhdr));
}

static __always_inline struct iphdr *take_ip(struct cursor *cur)
{
	return take(cur, sizeof(struct iphdr));
}

static __always_inline struct udphdr *take_udp(struct cursor *cur)
{
	return take(cur, sizeof(struct udphdr));
}

/* By halfwords: a packet guarantees no more alignment. */
static __always_inline int same_mac(const void *a, const void *b)
{
	const __u16 *x = a, *y = b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

#endif
