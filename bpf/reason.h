/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Why a packet left a program the way it did. Every exit names one.
 *
 * Append only: a number is never reused, dashboards outlive releases.
 * A new reason also needs: its caption and verdict in ctl/core/reasons.py, a line in
 * docs/reasons.md, a test that provokes it in tests/bpf (each checked by a test).
 */
#ifndef OVNET_REASON_H
#define OVNET_REASON_H

enum reason {
	/* Nothing found by a function that looks for a reason to leave, so `if (why)` reads as
	 * it is meant. No program leaves for it. */
	REASON_NONE              = 0,

	/* Carried by eBPF. */
	REASON_ENCAP             = 1,
	REASON_DECAP             = 2,

	/* Left to the kernel path. */
	REASON_LEARNED           = 3,  /* and its flow approved */
	REASON_NOT_IPV4          = 4,
	REASON_NOT_OVERLAY       = 5,  /* none of the overlay's traffic */
	REASON_IP_OPTIONS        = 6,
	REASON_FRAGMENT          = 7,
	REASON_TTL               = 8,
	REASON_OVERSIZE          = 9,
	REASON_TCP_CONTROL       = 10, /* SYN, FIN or RST */
	REASON_FLOW_UNKNOWN      = 11,
	REASON_FLOW_EXPIRED      = 12,
	REASON_NO_ENDPOINT       = 13,
	REASON_CHANGED           = 14, /* translated, or not from a port of ours */
	REASON_PEER_KERNEL_PATH  = 15,
	REASON_BYPASS_OFF        = 16,
	REASON_NOT_ROUTED        = 17, /* frame not addressed to the gateway */
	REASON_TRUNCATED         = 18,
	REASON_PROTOCOL          = 19, /* not TCP, UDP or ICMP echo */
	REASON_VXLAN_HEADER      = 20, /* flags or VNI not ours */
	REASON_INNER_MAC         = 21,
	REASON_ECN               = 22, /* CE outside, not ECN-capable inside */
	REASON_FLOWS_FULL        = 23, /* a flow could not be stored */
	REASON_NO_ROOM           = 24, /* no headroom for the tunnel header */
	REASON_VLAN              = 25,
	REASON_NOT_CONFIGURED    = 26, /* node map not filled yet */
	REASON_FOREIGN_SOURCE    = 27, /* known VTEP, inner source that is no container's */

	REASON_OUTER_CHECKSUM    = 28, /* damaged, or only the kernel can verify it */
	REASON_UDP_GSO           = 29, /* decap cannot take the tunnel's marks off segments */
	REASON_PEERS_INCOMPLETE  = 30, /* perhaps of a peer that did not fit the map */
	REASON_INNER_CHECKSUM    = 31, /* a container's IP header, damaged */

	/* Carried by eBPF, too: the numbers above were taken. */
	REASON_DELIVERED         = 32, /* decapsulated by XDP before */

	/* Left to the kernel path, too. */
	REASON_OUTER_LENGTH      = 33, /* segments, longer in the tunnel than its headers can say */
	REASON_POLICY_ROUTED     = 37, /* its mark may lead it elsewhere than the peer's entry */

	/* Carried by the kernel path, but for the tunnel header, which eBPF puts on and takes off. */
	REASON_TUNNEL_ENCAP      = 34,
	REASON_TUNNEL_DECAP      = 35,

	/* Left to the kernel path, tunnel header and all. */
	REASON_NOT_LOCAL         = 36, /* may leave this node again, with the tunnel's marks on it */
	REASON_NO_NEIGHBOUR      = 38, /* next hop's MAC address not known: ARP is the kernel's */
	REASON_SUPER_PACKET      = 39, /* several segments in one, or TCP that stays in order with such */

	/* Dropped: ours, but wrong. */
	REASON_UNKNOWN_VTEP      = 40,
	REASON_SPOOFED_SOURCE    = 41, /* inner source is not that VTEP's */
	REASON_OUTER_FRAGMENT    = 42,
	REASON_OUTER_OPTIONS     = 43,
	REASON_TAGGED            = 44, /* a VLAN tag that the kernel would look behind */
	REASON_UNREADABLE        = 45, /* perhaps VXLAN for us, and it cannot be looked at */

	/* Left to the kernel path, too: all numbers below those of drops are taken. */
	REASON_NO_DEVICE         = 46, /* the vxlan device is not (or no longer) there */

	/* Left to the kernel path, too. */
	REASON_LEARNED_TRANSLATED = 47, /* translated, and its flow approved as such */
	REASON_TRANSLATED        = 48, /* XDP: approved with a translation, which from_wire does */

	REASON_NOT_IPV6          = 49, /* NOT_IPV4 of the programs for IPv6 */

	/* Impossible. */
	REASON_ABORTED           = 60,

	REASON_MAX               = 64,
};

/* What becomes of a packet. */
enum verdict {
	VERDICT_PASS,   /* left to the kernel path, exactly as it came but for a signature */
	VERDICT_BYPASS, /* carried by eBPF */
	VERDICT_TUNNEL, /* its tunnel header is eBPF's, all else the kernel path's */
	VERDICT_DROP,
	VERDICT_ABORT,  /* dropped, and a bug */
};

static __always_inline enum verdict verdict_of(enum reason reason)
{
	if (reason == REASON_ENCAP || reason == REASON_DECAP || reason == REASON_DELIVERED)
		return VERDICT_BYPASS;
	if (reason == REASON_TUNNEL_ENCAP || reason == REASON_TUNNEL_DECAP)
		return VERDICT_TUNNEL;
	if (reason == REASON_ABORTED)
		return VERDICT_ABORT;
	return reason >= REASON_UNKNOWN_VTEP && reason <= REASON_UNREADABLE ? VERDICT_DROP : VERDICT_PASS;
}

#endif
