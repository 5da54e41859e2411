/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Flows that netfilter translates: services, published ports, whatever else.
 *
 * What they are translated to is learned from packets of the other end. from_wire signs such a
 * packet as any other and leaves a note of it: signature -> flow and fingerprint. Where it comes out
 * of netfilter, to_container finds that what the packet says now is not what was signed, looks the
 * note up, and knows both sides. The fingerprint says that it is this very packet: two flows may have
 * one signature, and a packet of this host any hash. What is known by then it keeps in
 * `translations`, for both directions.
 *
 * So no packet that a container sends costs a note. from_container signs what is for a service; at
 * to_overlay, `translations` tells from the packet what it may have been, and the signature whether
 * it was.
 */
#ifndef OVNET_TRANSLATION_H
#define OVNET_TRANSLATION_H

#include "flow.h"

/* A note that has not been asked for keeps its place for this long: while a burst is on its way,
 * the kernel may make one packet of it, which is numbered as its first. */
#define NOTE_NS 50000000ULL

/* Has the address been seen to stand for containers of peers? */
static __always_inline int is_service(struct addr addr)
{
	return !!services.lookup(&addr);
}

/* The flow in the other direction, of whatever DSCP. */
static __always_inline struct flow_key reverse_of(const struct flow_key *key)
{
	struct flow_key back = *key;

	back.saddr = key->daddr;
	back.daddr = key->saddr;
	back.sport = key->dport;
	back.dport = key->sport;
	back.direction = !key->direction;
	back.dscp = 0;
	return back;
}

static __always_inline struct flow_key translated(const struct flow_key *key,
						  const struct translation *to)
{
	struct flow_key made = *key;

	if (key->direction == DIR_OUT)
		made.daddr = to->addr;
	else
		made.saddr = to->addr;
	made.sport = to->sport;
	made.dport = to->dport;
	return made;
}

/* What makes a packet one of `to`. */
static __always_inline struct translation translation_to(const struct flow_key *to)
{
	return (struct translation){
		.addr = to->direction == DIR_OUT ? to->daddr : to->saddr,
		.sport = to->sport,
		.dport = to->dport,
	};
}

/* What makes a packet that answers one of `to`. */
static __always_inline struct translation translation_back(const struct flow_key *to)
{
	struct translation back = translation_to(to);

	back.sport = to->dport;
	back.dport = to->sport;
	return back;
}

/* A connection opens or closes: its next packets have to be approved anew, on both
 * directions, because conntrack's state is about to change. */
static __always_inline void forget_flow(const struct flow_key *key)
{
	struct flow_key place = place_of(key);
	struct translation *to;

	flows.delete(&place);
	place.dscp = 0;
	to = translations.lookup(&place);
	if (to)
		place = translated(&place, to);
	place = reverse_of(&place);
	flows.delete(&place);
}

/* Note a packet from the wire that goes into netfilter with this signature. */
static __always_inline void note_packet(const struct inner *inner)
{
	struct note *known = notes.lookup((__u32 *)&inner->hash), note = {};

	if (!inner->l4.fingerprint)
		return;
	note.noted_ns = bpf_ktime_get_coarse_ns();
	if (known && note.noted_ns - known->noted_ns < NOTE_NS)
		return;
	note.fingerprint = inner->l4.fingerprint;
	note.key = inner->key;
	notes.update((__u32 *)&inner->hash, &note);
}

/* Is `now` what netfilter has made of the packet that was noted? */
static __always_inline int is_made_of(const struct note *note, const struct inner *now)
{
	const struct flow_key *was = &note->key;

	return note->noted_ns && note->fingerprint == now->l4.fingerprint &&
	       same_addr(&was->daddr, &now->key.daddr) && was->ifindex == now->key.ifindex &&
	       was->proto == now->key.proto && was->dscp == now->key.dscp;
}

/* What becomes of packets of this flow, which has no DSCP. */
static __always_inline void remember(struct flow_key *place, struct translation to)
{
	struct translation *known = translations.lookup(place);

	if (known && same_addr(&known->addr, &to.addr) && known->sport == to.sport && known->dport == to.dport)
		return;
	translations.update(place, &to);
}

/* Packets of `was` leave netfilter as `now`; so the answers, the other way round. */
static __always_inline void remember_both(const struct node *self, const struct flow_key *was,
					  const struct flow_key *now)
{
	__u64 time = bpf_ktime_get_coarse_ns();
	struct addr addr = now->saddr;
	struct flow_key place = *was;

	place.dscp = 0;
	remember(&place, translation_to(now));
	place = reverse_of(now);
	remember(&place, translation_back(was));
	if (!peer_of(self, addr) && !is_service(addr))
		services.update(&addr, &time);
}

/* A packet for a container, which is not what was signed. If it is what has become of the one that
 * was noted, both directions of its translation are known from now on, and its own is approved. */
static __always_inline enum reason learn_arrived(struct __sk_buff *skb, const struct node *self,
						 const struct inner *now)
{
	struct note *found, note;
	struct translation to;
	__u32 hash = skb->hash;
	enum reason why;

	found = notes.lookup(&hash);
	if (!found)
		return REASON_CHANGED;
	note = *found;
	/* The entry may have become another's meanwhile. */
	if (flow_hash(&note.key, self->flow_seed) != hash || !is_made_of(&note, now))
		return REASON_CHANGED;
	found->noted_ns = 0;
	remember_both(self, &note.key, &now->key);
	if (now->l4.control)
		return REASON_TCP_CONTROL;
	to = translation_to(&now->key);
	why = approve_flow(skb, self, &note.key, hash, &to);
	return why ? why : REASON_LEARNED_TRANSLATED;
}

/* A container's packet that leaves for the overlay as `now`, which is not what was signed. If it was
 * signed as what answers to `now` are translated to, that flow is approved. */
static __always_inline enum reason learn_departed(struct __sk_buff *skb, const struct node *self,
						  const struct flow_key *now)
{
	struct flow_key was = reverse_of(now);
	struct translation *back = translations.lookup(&was), to;
	enum reason why;

	if (!back)
		return REASON_CHANGED;
	was = translated(&was, back);
	was = reverse_of(&was);
	was.dscp = now->dscp;
	if (skb->hash != flow_hash(&was, self->flow_seed))
		return REASON_CHANGED;
	to = translation_to(now);
	why = approve_flow(skb, self, &was, skb->hash, &to);
	return why ? why : REASON_LEARNED_TRANSLATED;
}

/* The translated IP header, with its checksum. By halfwords, as same_ip(); `direction` is a constant,
 * so that the verifier sees where it writes. */
static __always_inline void translate_ip(iphdr_t *ip, enum direction direction,
					 const struct translation *to)
{
	ip_set_addr(ip, (void *)(direction == DIR_OUT ? &ip->daddr : &ip->saddr), &to->addr);
}

/* Ports and checksum of the TCP or UDP header that begins at `offset`, as nf_nat does it: a UDP
 * checksum that is not there stays so, and of one that a NIC is to finish only the addresses are
 * in it. Not 0: the kernel has refused. */
static __always_inline long translate_l4(struct __sk_buff *skb, __u32 offset,
					 const struct flow_key *key, const struct translation *to)
{
	__u32 at = offset + (key->proto == IPPROTO_TCP ? __builtin_offsetof(struct tcphdr, check) :
						       __builtin_offsetof(struct udphdr, check));
	__u64 flags = key->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	const struct addr *from = key->direction == DIR_OUT ? &key->daddr : &key->saddr;
	__be16 were[2] = { key->sport, key->dport }, are[2] = { to->sport, to->dport };
	__u32 ports_were, ports_are;

	__builtin_memcpy(&ports_were, were, sizeof(were));
	__builtin_memcpy(&ports_are, are, sizeof(are));
#pragma unroll
	for (int i = 0; i < ADDR_WORDS; i++)
		if (bpf_l4_csum_replace(skb, at, from->word[i], to->addr.word[i],
					flags | BPF_F_PSEUDO_HDR | sizeof(__be32)))
			return -1;
	if (ports_were == ports_are)
		return 0;
	if (bpf_l4_csum_replace(skb, at, ports_were, ports_are, flags | sizeof(ports_are)))
		return -1;
	return bpf_skb_store_bytes(skb, offset, are, sizeof(are), 0);
}

#endif
