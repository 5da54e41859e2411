/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bcc's copy of the UAPI lacks or declares wrongly, from bcc 0.26 on.
 */
#ifndef OVNET_COMPAT_H
#define OVNET_COMPAT_H

/* bcc declares three arguments (still in 0.37); the kernel takes four. */
static long (*redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params,
			      int plen, __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

/* From Linux 5.18 on, as BPF_F_XDP_HAS_FRAGS; bcc may know neither. */
static __u64 (*xdp_get_buff_len)(struct xdp_md *xdp) = (void *)188;

#ifndef AF_INET
#define AF_INET 2
#endif

#ifndef AF_INET6
#define AF_INET6 10
#endif

#ifndef TC_ACT_UNSPEC
#define TC_ACT_UNSPEC	(-1)
#define TC_ACT_SHOT	2
#define TC_ACT_REDIRECT	7
#endif

#ifndef PACKET_HOST
#define PACKET_HOST 0
#endif

/* What the compiler knows of `variable` ends here, as libbpf has it. */
#ifndef barrier_var
#define barrier_var(variable) asm volatile("" : "+r"(variable))
#endif

#define likely(x)	__builtin_expect(!!(x), 1)

#endif
