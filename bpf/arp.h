/* SPDX-License-Identifier: GPL-2.0 */
/* ARP of containers: who speaks for an address has it. */
#ifndef OVNET_ARP_H
#define OVNET_ARP_H

#include "maps.h"
#include "parse.h"

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

/* A frame that came in through port `from`, with the cursor behind `eth`. If it is ARP: who
 * speaks for the address of a container of another port has taken it over, for the bridge and
 * its neighbour table. The agent hears of that a moment later; from now on the kernel path
 * knows better where the address is. */
static __always_inline void heed_arp(struct cursor *cur, const struct ethhdr *eth, __u32 from)
{
	struct endpoint *endpoint;
	struct arp *arp;

	if (eth->h_proto != bpf_htons(ETH_P_ARP))
		return;
	arp = take_arp(cur);
	if (!arp)
		return;
	endpoint = endpoint_of(arp->sender);
	if (endpoint && endpoint->ifindex != from)
		forget_endpoint(arp->sender);
}

#endif
