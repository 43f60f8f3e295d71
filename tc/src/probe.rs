//! Run once by the loader: does this kernel know BPF_F_IPV6 (1 << 7) in `bpf_l4_csum_replace` (≥ 6.16)?
//! Without it a checksum that the device has summed (CHECKSUM_COMPLETE) goes wrong over IPv6.

use aya_ebpf::{
    EbpfContext as _, bindings::BPF_F_PSEUDO_HDR, helpers::generated::bpf_l4_csum_replace,
    macros::classifier, programs::TcContext,
};

/// `BPF_F_IPV6`.
const IPV6: u64 = 1 << 7;

/// Returns 1 where the flag is known, else 0.
#[classifier]
pub fn fsm_probe_csum(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid; the helper checks the offset.
    let result = unsafe {
        bpf_l4_csum_replace(
            ctx.as_ptr().cast(),
            40,
            0,
            1,
            u64::from(BPF_F_PSEUDO_HDR) | IPV6,
        )
    };
    i32::from(result == 0)
}
