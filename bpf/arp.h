/* SPDX-License-Identifier: GPL-2.0 */
/* Claims to an IPv4 address: ARP. */
#ifndef OVNET_ARP_H
#define OVNET_ARP_H

/* RFC 826, for Ethernet and IPv4. */
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8   hardware_len;
	__u8   protocol_len;
	__be16 operation;
	__u8   sender_mac[ETH_ALEN];
	__be32 sender;
	__u8   target_mac[ETH_ALEN];
	__be32 target;
} __attribute__((packed));
_Static_assert(sizeof(struct arp) == 28, "as on the wire");

static __always_inline struct arp *take_arp(struct cursor *cur)
{
	struct arp *arp = take(cur, sizeof(*arp));

	return arp && arp->protocol == bpf_htons(ETH_P_IP) && arp->protocol_len == 4 &&
	       arp->hardware_len == ETH_ALEN ? arp : 0;
}

/* A frame that came in through port `from`, with the cursor behind what take_headers() took of it:
 * `why` is its answer. */
static __always_inline void heed_claim(struct cursor *cur, enum reason why, const struct ethhdr *eth,
				       const iphdr_t *ip, __u32 from)
{
	struct arp *arp;

	if (why != REASON_OTHER_FAMILY || eth->h_proto != bpf_htons(ETH_P_ARP))
		return;
	arp = take_arp(cur);
	if (arp)
		heed((struct addr){ { arp->sender } }, from);
}

#endif
