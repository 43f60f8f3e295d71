//! The skb as a [`PacketView`], and what else the programs ask of it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_fib_lookup as RawFib, bpf_sock_tuple},
    helpers::generated::{
        bpf_fib_lookup, bpf_ktime_get_coarse_ns, bpf_sk_release, bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use fsm_common::{
    bpf::fib::Host,
    flow::{Family, FlowKey},
    scratch::FibLookup,
    view::PacketView,
    wire::l2::EtherType,
};

/// Bytes that are made directly readable where the frame has them: two tags, IPv6, some extension headers
/// and TCP without options.
const HEADERS: usize = 128;

/// `BPF_F_CURRENT_NETNS`: the namespace of the packet's device.
const CURRENT_NETNS: u64 = u64::MAX;

/// One packet.
pub struct Skb {
    ctx: TcContext,
}

impl Skb {
    /// Takes the program's context.
    #[inline(always)]
    pub fn new(ctx: TcContext) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    fn raw(&self) -> *mut __sk_buff {
        self.ctx.as_ptr().cast()
    }

    /// Device that the hook is on.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw()).ifindex }
    }

    /// The mark.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw()).mark }
    }

    /// Makes the mark 0.
    #[inline(always)]
    pub fn clear_mark(&self) {
        // SAFETY: as above; mark is writable in TC.
        unsafe { (*self.raw()).mark = 0 }
    }

    /// Clears `bit` in the mark; true where it was set.
    #[inline(always)]
    pub fn take_mark(&self, bit: u32) -> bool {
        // SAFETY: as above; mark is writable in TC.
        unsafe {
            let mark = (*self.raw()).mark;
            if mark & bit == 0 {
                return false;
            }
            (*self.raw()).mark = mark & !bit;
        }
        true
    }

    /// Sets `bit` in the mark.
    #[inline(always)]
    pub fn set_mark(&self, bit: u32) {
        // SAFETY: as above.
        unsafe { (*self.raw()).mark |= bit }
    }

    /// Chooses the queue of the device that it goes out of, numbered from 0: as if it had arrived on a queue of that
    /// number (`skb_tx_hash`, net/core/dev.c).
    #[inline(always)]
    pub fn set_queue(&self, queue: u32) {
        // SAFETY: as above; TC may write it.
        unsafe { (*self.raw()).queue_mapping = queue + 1 }
    }

    /// Whether a VLAN tag stands beside the frame.
    #[inline(always)]
    pub fn has_tag(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw()).vlan_present != 0 }
    }

    /// The VLAN tag that stands beside the frame: its control information, and whether it is one of 802.1ad.
    #[inline(always)]
    pub fn tag(&self) -> Option<(u16, bool)> {
        // SAFETY: as above.
        let (tci, proto) = unsafe { ((*self.raw()).vlan_tci, (*self.raw()).vlan_proto) };
        let is_ad = u16::from_be(proto as u16) == EtherType::QINQ.0;
        self.has_tag().then_some((tci as u16, is_ad))
    }

    /// Wire segments in this frame.
    #[inline(always)]
    pub fn segments(&self) -> u64 {
        // SAFETY: as above.
        match unsafe { (*self.raw()).gso_segs } {
            0 => 1,
            segments => u64::from(segments),
        }
    }

    /// L3 bytes of the largest frame that this becomes on a wire.
    #[inline(always)]
    pub fn wire_l3_len(&self, l3: usize, l4: usize) -> usize {
        // SAFETY: as above.
        match unsafe { (*self.raw()).gso_size } {
            0 => self.frame_len().wrapping_sub(l3),
            // the largest TCP header
            size => size as usize + 60 + (l4 - l3),
        }
    }

    /// Makes the headers directly readable (they may lie in a page fragment).
    #[inline(always)]
    pub fn pull_headers(&self) {
        let linear = self.ctx.data_end() - self.ctx.data();
        if linear < HEADERS && linear < self.frame_len() {
            let _ = self.ctx.pull_data(self.frame_len().min(HEADERS) as u32);
        }
    }

    /// The same as far as an ICMP error's quote.
    #[inline(always)]
    pub fn pull_quote(&self) {
        let linear = self.ctx.data_end() - self.ctx.data();
        if linear < 2 * HEADERS && linear < self.frame_len() {
            let _ = self.ctx.pull_data(self.frame_len().min(2 * HEADERS) as u32);
        }
    }

    /// Overwrites bytes of the packet; `None` where it ends before them.
    #[inline(always)]
    pub fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let at = self.ctx.data() + offset;
        if at + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: compared with the packet's end just above.
        unsafe { (at as *mut [u8; N]).write(bytes) };
        Some(())
    }

    /// The context, for a tail call.
    #[inline(always)]
    pub fn tail_ctx(&self) -> &TcContext {
        &self.ctx
    }

    /// The context, for helpers.
    #[inline(always)]
    pub fn helper_ctx(&self) -> *mut __sk_buff {
        self.raw()
    }
}

impl PacketView for Skb {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.ctx.data() + offset;
        if at + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: compared with the packet's end just above.
        Some(unsafe { (at as *const [u8; N]).read() })
    }

    #[inline(always)]
    fn frame_len(&self) -> usize {
        self.ctx.len() as usize
    }
}

impl Host for Skb {
    const COUNTS: bool = true;

    #[inline(always)]
    fn fib_lookup(&self, params: *mut FibLookup, size: u32) -> i64 {
        // SAFETY: `params` points to `size` bytes laid out as the kernel's struct.
        unsafe { bpf_fib_lookup(self.raw().cast(), params.cast::<RawFib>(), size as i32, 0) }
    }

    #[inline(always)]
    fn arrived_on(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw()).ingress_ifindex }
    }

    #[inline(always)]
    fn has_connection<F: Family>(&self, key: &FlowKey<F::Addr>) -> bool {
        /// `TCP_LISTEN` (`net/tcp_states.h`).
        const LISTEN: u32 = 10;
        // A key begins as `struct bpf_sock_tuple` does: addresses, then ports.
        let size = if F::V6 { 36 } else { 12 };
        let tuple = core::ptr::from_ref(key).cast_mut().cast::<bpf_sock_tuple>();
        // SAFETY: `tuple` points to that many bytes; what comes back is released on the only way out.
        unsafe {
            let socket = bpf_skc_lookup_tcp(self.raw().cast(), tuple, size, CURRENT_NETNS, 0);
            if socket.is_null() {
                return false;
            }
            let state = (&raw const (*socket).state).read_volatile();
            bpf_sk_release(socket.cast());
            state != LISTEN
        }
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: takes no arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}
