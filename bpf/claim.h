/* SPDX-License-Identifier: GPL-2.0 */
/* Containers that speak for an address have it, for the bridge and its neighbour table. The agent hears
 * of that a moment later; from now on the kernel path knows better where the address is. */
#ifndef OVNET_CLAIM_H
#define OVNET_CLAIM_H

#include "ip.h"
#include "maps.h"

/* `addr` was claimed through the port `from`. */
static __always_inline void heed(struct addr addr, __u32 from)
{
	struct endpoint *endpoint = endpoint_of(addr);

	if (endpoint && endpoint->ifindex != from)
		forget_endpoint(addr);
}

#if FAMILY == 4
#include "arp.h"
#else
#include "ndp.h"
#endif

#endif
