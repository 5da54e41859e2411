/* SPDX-License-Identifier: GPL-2.0 */
/* Addresses of whichever family, a word at a time: of IPv4 there is one, so these loops are none. */
#ifndef OVNET_ADDR_H
#define OVNET_ADDR_H

#include "abi.h"

/* That of a header, or of a helper's parameter. */
static __always_inline struct addr addr_at(const void *place)
{
	const __be32 *word = place;
	struct addr addr;

#pragma unroll
	for (int i = 0; i < ADDR_WORDS; i++)
		addr.word[i] = word[i];
	return addr;
}

/* 0.0.0.0 or ::, which stands for none. */
static __always_inline int is_none(const struct addr *addr)
{
	__be32 any = 0;

#pragma unroll
	for (int i = 0; i < ADDR_WORDS; i++)
		any |= addr->word[i];
	return !any;
}

static __always_inline int same_addr(const struct addr *a, const struct addr *b)
{
	__be32 differ = 0;

#pragma unroll
	for (int i = 0; i < ADDR_WORDS; i++)
		differ |= a->word[i] ^ b->word[i];
	return !differ;
}

/* Is it the one in a header? */
static __always_inline int is_at(const void *place, const struct addr *addr)
{
	struct addr there = addr_at(place);

	return same_addr(&there, addr);
}

static __always_inline struct addr masked(const struct addr *addr, const struct addr *mask)
{
	struct addr part;

#pragma unroll
	for (int i = 0; i < ADDR_WORDS; i++)
		part.word[i] = addr->word[i] & mask->word[i];
	return part;
}

/* As numbers: is `a` before `b`? */
static __always_inline int is_before(const struct addr *a, const struct addr *b)
{
#pragma unroll
	for (int i = 0; i < ADDR_WORDS - 1; i++)
		if (a->word[i] != b->word[i])
			return bpf_ntohl(a->word[i]) < bpf_ntohl(b->word[i]);
	return bpf_ntohl(a->word[ADDR_WORDS - 1]) < bpf_ntohl(b->word[ADDR_WORDS - 1]);
}

/* 32 bits of it, no secret: the address itself, where it has no more. */
static __always_inline __u32 fold_addr(const struct addr *addr)
{
	__u32 folded = 0;

#pragma unroll
	for (int i = 0; i < ADDR_WORDS; i++)
		folded = folded * 0x9e3779b1 + addr->word[i];
	return folded;
}

#endif
