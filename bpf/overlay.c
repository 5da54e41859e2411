// SPDX-License-Identifier: GPL-2.0
/*
 * ovnet's datapath: a shortcut for what the kernel path has approved.
 *
 *   container -> [from_container] -> bridge, routes, netfilter -> [to_overlay] -> vxlan device
 *   uplink -> [from_wire] -> vxlan device, netfilter, bridge -> [to_container] -> container
 *
 * from_container and from_wire carry packets of approved flows past all that lies
 * between; to_overlay and to_container approve what came out of it unchanged.
 * Of what is left to the kernel path, to_overlay and from_wire still spare it the vxlan device:
 * they put the tunnel header on and take it off.
 * from_wire_xdp, where it is wanted, does the larger part of from_wire's work before
 * there is an skb.
 *
 * Compiled for each family; those for IPv4 hang at the hooks, and hand IPv6 over.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "compat.h"
#include "encap.h"
#include "exit.h"
#include "handover.h"
#include "learn.h"
#include "tunnel.h"
#include "xdp.h"

static __always_inline int on_from_container(struct __sk_buff *skb)
{
	__u32 len = skb->len, packets = packets_of(skb);

	return finish(skb, HOOK_FROM_CONTAINER, len, packets, container_to_wire(skb));
}

static __always_inline int on_to_overlay(struct __sk_buff *skb)
{
	__u32 len = skb->len, packets = packets_of(skb);
	int action = finish(skb, HOOK_TO_OVERLAY, len, packets, learn(skb, DIR_OUT));

	if (!tunnels())
		return action;
	return finish(skb, HOOK_TUNNEL_OUT, len, packets, netfilter_to_wire(skb, packets));
}

/* What follows when `why` is all that has been said of a packet from the uplink. */
static __always_inline int after_from_wire(struct __sk_buff *skb, const struct arrival *in,
					   __u32 len, __u32 packets, enum reason why)
{
	int action = finish(skb, HOOK_FROM_WIRE, len, packets, why);

	if (action != TC_ACT_UNSPEC || !in->believed || !tunnels())
		return action;
	return finish(skb, HOOK_TUNNEL_IN, len, packets, wire_to_netfilter(skb, packets, in));
}

static __always_inline int on_from_wire(struct __sk_buff *skb)
{
	__u32 len = skb->len, packets = packets_of(skb);
	struct arrival in = {};
	enum reason why = from_wire_or_xdp(skb, &in);

	return after_from_wire(skb, &in, len, packets, why);
}

static __always_inline int on_to_container(struct __sk_buff *skb)
{
	__u32 len = skb->len, packets = packets_of(skb);

	return finish(skb, HOOK_TO_CONTAINER, len, packets, learn(skb, DIR_IN));
}

int from_container(struct __sk_buff *skb)
{
	hand_over(skb, HOOK_FROM_CONTAINER);
	return on_from_container(skb);
}

int to_overlay(struct __sk_buff *skb)
{
	hand_over(skb, HOOK_TO_OVERLAY);
	return on_to_overlay(skb);
}

int from_wire(struct __sk_buff *skb)
{
	hand_over(skb, HOOK_FROM_WIRE);
	return on_from_wire(skb);
}

int to_container(struct __sk_buff *skb)
{
	hand_over(skb, HOOK_TO_CONTAINER);
	return on_to_container(skb);
}

int from_wire_xdp(struct xdp_md *xdp)
{
	__u32 len = xdp_len(xdp);

	xdp_hand_over(xdp);
	return xdp_finish(xdp, len, wire_to_stack(xdp, len));
}

/* The same for frames in several pieces, where the kernel has them. */
int from_wire_xdp_frags(struct xdp_md *xdp)
{
	__u32 len = xdp_get_buff_len(xdp);

	xdp_hand_over(xdp);
	return xdp_finish(xdp, len, wire_to_stack(xdp, len));
}
