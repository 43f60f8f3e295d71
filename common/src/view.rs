//! Reading packet bytes, whatever holds them: an XDP frame, an skb, or a slice.
//!
//! A `&[u8]` over packet memory is refused by the verifier, which wants each access compared with the
//! packet's end pointer; so each hook implements this trait with just that comparison.

/// Bytes of one frame, from its Ethernet header on.
pub trait PacketView {
    /// The `N` bytes at `offset`, or `None` where the readable part ends before them. `N` is at least 2 in
    /// code that runs in the kernel: LLVM turns `at + 1 > end` into `at >= end`, of which the verifier
    /// learns nothing.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Length of the whole frame in bytes; may exceed what `read` can reach.
    fn frame_len(&self) -> usize;
}

impl PacketView for [u8] {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk::<N>().copied()
    }

    #[inline(always)]
    fn frame_len(&self) -> usize {
        self.len()
    }
}
