/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Parsers move a cursor over linear packet data and check every bound. They return
 * the header, or 0 if it is not all there.
 *
 * The verifier follows bounds by the instructions, not by their sense: it wants to see the
 * start of the packet, plus something, compared with its end as that was loaded. A compiler
 * is free to move terms to the other side, to compare 32 bits of what it knows to have no
 * more, or to compute an address a second time; each new one does more of it. So it is not
 * told what a cursor's pointers are made of: they all come out of cursor() and at(), and no
 * other code compares or subtracts pointers into a packet.
 */
#ifndef OVNET_PARSE_H
#define OVNET_PARSE_H

#include <linux/if_ether.h>
#include <linux/udp.h>

struct cursor {
	void *pos;
	void *end;
};

/* `start`, `end`: fields of the context. */
static __always_inline struct cursor cursor(__u32 start, __u32 end)
{
	struct cursor cur = { (void *)(long)start, (void *)(long)end };

	barrier_var(cur.pos);
	barrier_var(cur.end);
	return cur;
}

/* The address `offset` bytes on, to be compared with the end. */
static __always_inline void *at(const struct cursor *cur, __u32 offset)
{
	void *pos = cur->pos + offset;

	barrier_var(pos);
	return pos;
}

/* Bytes from the cursor to the end. */
static __always_inline __u32 bytes_left(const struct cursor *cur)
{
	__u64 left = cur->end - cur->pos;

	barrier_var(left);
	return left;
}

/* Does a cursor at the start of the packet reach over `want` bytes, or all of it? */
static __always_inline int is_linear(const struct __sk_buff *skb, const struct cursor *cur,
				     __u32 want)
{
	return likely(at(cur, want) <= cur->end) || at(cur, skb->len) == cur->end;
}

/* Start at the Ethernet header, with `want` bytes (or the whole packet) linear. A
 * packet may come in fragments of memory; pulling invalidates older pointers. It takes
 * memory, too: without, the cursor stays short, and the packet seems to end where it does. */
static __always_inline struct cursor cursor_of(struct __sk_buff *skb, __u32 want)
{
	struct cursor cur = cursor(skb->data, skb->data_end);

	if (is_linear(skb, &cur, want))
		return cur;
	bpf_skb_pull_data(skb, want < skb->len ? want : skb->len);
	return cursor(skb->data, skb->data_end);
}

static __always_inline void *take(struct cursor *cur, __u32 size)
{
	void *header = cur->pos, *behind = at(cur, size);

	if (behind > cur->end)
		return 0;
	cur->pos = behind;
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
