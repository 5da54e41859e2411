// SPDX-License-Identifier: GPL-2.0
/*
 * ovnet's datapath: a shortcut for what the kernel path has approved.
 *
 *   container -> [from_container] -> bridge, routes, netfilter -> [to_overlay] -> vxlan device
 *   uplink -> [from_wire] -> vxlan device, netfilter, bridge -> [to_container] -> container
 *
 * from_container and from_wire carry packets of approved flows past all that lies
 * between; to_overlay and to_container approve what came out of it unchanged.
 * from_wire_xdp, where it is wanted, does the larger part of from_wire's work before
 * there is an skb.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#include "compat.h"
#include "encap.h"
#include "exit.h"
#include "learn.h"
#include "xdp.h"

int from_container(struct __sk_buff *skb)
{
	__u32 len = skb->len, packets = packets_of(skb);

	return finish(skb, HOOK_FROM_CONTAINER, len, packets, container_to_wire(skb));
}

int to_overlay(struct __sk_buff *skb)
{
	__u32 len = skb->len, packets = packets_of(skb);

	return finish(skb, HOOK_TO_OVERLAY, len, packets, learn(skb, DIR_OUT));
}

int from_wire(struct __sk_buff *skb)
{
	__u32 len = skb->len, packets = packets_of(skb);

	return finish(skb, HOOK_FROM_WIRE, len, packets, from_wire_or_xdp(skb));
}

int to_container(struct __sk_buff *skb)
{
	__u32 len = skb->len, packets = packets_of(skb);

	return finish(skb, HOOK_TO_CONTAINER, len, packets, learn(skb, DIR_IN));
}

int from_wire_xdp(struct xdp_md *xdp)
{
	__u32 len = xdp_len(xdp);

	return xdp_finish(xdp, len, wire_to_stack(xdp, len));
}

/* The same for frames in several pieces, where the kernel has them. */
int from_wire_xdp_frags(struct xdp_md *xdp)
{
	__u32 len = xdp_get_buff_len(xdp);

	return xdp_finish(xdp, len, wire_to_stack(xdp, len));
}
