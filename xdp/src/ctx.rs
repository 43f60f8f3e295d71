//! The XDP frame as a [`PacketView`], and what else the program asks of it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_fib_lookup as RawFib, xdp_md},
    helpers::generated::{
        bpf_fib_lookup, bpf_ktime_get_coarse_ns, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
    },
    programs::XdpContext,
};
use fsm_common::{
    bpf::fib::Host,
    flow::{Family, FlowKey},
    scratch::FibLookup,
    view::PacketView,
};

/// One frame. What lies beyond its first buffer is not read.
pub struct Frame {
    ctx: XdpContext,
}

impl Frame {
    /// Takes the program's context.
    #[inline(always)]
    pub fn new(ctx: XdpContext) -> Self {
        Self { ctx }
    }

    /// Device that the frame came from.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }

    /// The context, for a tail call.
    #[inline(always)]
    pub fn tail_ctx(&self) -> &XdpContext {
        &self.ctx
    }

    /// Makes the frame `len` bytes long; `None` where the driver has no room for it. What was read before is
    /// stale then.
    #[inline(always)]
    pub fn set_len(&self, len: usize) -> Option<()> {
        let delta = len as i32 - self.frame_len() as i32;
        // SAFETY: the context is valid while the program runs.
        match unsafe { bpf_xdp_adjust_tail(self.ctx.as_ptr().cast(), delta) } {
            0 => Some(()),
            _ => None,
        }
    }

    /// Overwrites bytes of the frame; `None` where its first buffer ends before them.
    #[inline(always)]
    pub fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let at = self.ctx.data() + offset;
        if at + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: compared with the frame's end just above.
        unsafe { (at as *mut [u8; N]).write(bytes) };
        Some(())
    }
}

impl PacketView for Frame {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.ctx.data() + offset;
        if at + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: compared with the frame's end just above.
        Some(unsafe { (at as *const [u8; N]).read() })
    }

    #[inline(always)]
    fn frame_len(&self) -> usize {
        let linear = self.ctx.data_end() - self.ctx.data();
        // Only a frame that fills its buffer can have another one.
        if linear < 1024 {
            return linear;
        }
        // SAFETY: the context is valid while the program runs.
        unsafe { bpf_xdp_get_buff_len(self.ctx.as_ptr().cast()) as usize }
    }
}

impl Host for Frame {
    const COUNTS: bool = false;

    #[inline(always)]
    fn fib_lookup(&self, params: *mut FibLookup, size: u32) -> i64 {
        let ctx: *mut xdp_md = self.ctx.as_ptr().cast();
        // SAFETY: `params` points to `size` bytes laid out as the kernel's struct.
        unsafe { bpf_fib_lookup(ctx.cast(), params.cast::<RawFib>(), size as i32, 0) }
    }

    #[inline(always)]
    fn arrived_on(&self) -> u32 {
        self.ifindex()
    }

    #[inline(always)]
    fn has_connection<F: Family>(&self, _key: &FlowKey<F::Addr>) -> bool {
        false
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: takes no arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}
