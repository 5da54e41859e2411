// SPDX-License-Identifier: GPL-2.0
/*
 * The programs with a preparation in front, for what BPF_PROG_TEST_RUN cannot set on
 * a packet. Appended to the datapath's text; the packet's cb says what to do:
 *
 *   cb[0] skb->hash   cb[1] length to cut to   cb[2] VLAN to push beside the data
 *   cb[3] 1: as if a tunnel inside the container had encapsulated it already
 *
 * and cb[4] says afterwards what skb->hash is.
 */
static __always_inline void prepare(struct __sk_buff *skb)
{
	if (skb->cb[1])
		bpf_skb_change_tail(skb, skb->cb[1], 0);
	if (skb->cb[3])
		bpf_skb_adjust_room(skb, 0, BPF_ADJ_ROOM_MAC,
				    ENCAP_L3_FAMILY | BPF_F_ADJ_ROOM_ENCAP_L4_UDP);
	if (skb->cb[2])
		bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), skb->cb[2]);
	if (skb->cb[0])
		bpf_set_hash(skb, skb->cb[0]);
}

#define PROBE(name, program)						\
int probe_##name(struct __sk_buff *skb)					\
{									\
	int action;							\
									\
	prepare(skb);							\
	action = program;						\
	skb->cb[4] = skb->hash;						\
	return action;							\
}

static __always_inline int without_a_byte(struct __sk_buff *skb)
{
	__u32 len = skb->len, packets = packets_of(skb);
	struct arrival in = {};
	enum reason why;

	bpf_skb_change_type(skb, PACKET_HOST);
	why = wire_to_container(skb, (struct cursor){}, &in);
	return after_from_wire(skb, &in, len, packets, why);
}

PROBE(from_container, on_from_container(skb))
PROBE(to_overlay, on_to_overlay(skb))
PROBE(from_wire, on_from_wire(skb))
/* As if no byte of the packet were linear, and pulling had failed: memory that is short and
 * packets in pieces are not to be had in a test run. For this host, whatever MAC its first bytes
 * would be. */
PROBE(unpulled, without_a_byte(skb))
PROBE(to_container, on_to_container(skb))

/* from_wire on a packet with metadata: cb is the note, mark a VLAN to push beside the data. */
int probe_delivery(struct __sk_buff *skb)
{
	__u32 len, packets, words[5] = { skb->cb[0], skb->cb[1], skb->cb[2], skb->cb[3], skb->cb[4] };
	struct arrival in = {};
	struct delivery note;
	enum reason why;

	__builtin_memcpy(&note, words, sizeof(note));
	if (skb->mark)
		bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), skb->mark);
	len = skb->len;
	packets = packets_of(skb);
	why = is_ours(&note) ? deliver(skb, &note) :
			       wire_to_container(skb, cursor_of(skb, ARRIVING_LEN), &in);
	return after_from_wire(skb, &in, len, packets, why);
}

/* An exit that no packet can take: see tests/bpf/test_reasons.py. */
int probe_aborted(struct __sk_buff *skb)
{
	__u32 len = skb->len;

	return finish(skb, HOOK_FROM_WIRE, len, 1, REASON_ABORTED);
}
