//! eBPF by hand: the empty program, and the wrapper that gives each run its own packet.
//!
//! The wrapper takes the next entry of an array of header bytes, writes it over the frame's, and
//! tail-calls the program to be measured; the same wrapper in front of the empty program is what it costs.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
};

use crate::sys::{self, ProgramKind, TableKind};

/// One 8-byte instruction (`struct bpf_insn`).
pub const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (off as u16 as u64) << 16
        | (imm as u32 as u64) << 32
}

pub const MOV_IMM: u8 = 0xb7;
pub const MOV_REG: u8 = 0xbf;
pub const ADD_IMM: u8 = 0x07;
const LSH_IMM: u8 = 0x67;
const OR_REG: u8 = 0x4f;
const ADD_REG: u8 = 0x0f;
const AND_IMM: u8 = 0x57;
const OR_IMM: u8 = 0x47;
const XOR_IMM: u8 = 0xa7;
const RSH_IMM: u8 = 0x77;
const STORE16: u8 = 0x6b;
const LOAD16: u8 = 0x69;
const LOAD8: u8 = 0x71;
pub const LOAD32: u8 = 0x61;
const LOAD64: u8 = 0x79;
pub const STORE32: u8 = 0x63;
const STORE64: u8 = 0x7b;
pub const STORE32_IMM: u8 = 0x62;
pub const JEQ_IMM: u8 = 0x15;
const JGT_REG: u8 = 0x2d;
const JLT_IMM: u8 = 0xa5;
pub const JA: u8 = 0x05;
pub const CALL: u8 = 0x85;
pub const EXIT: u8 = 0x95;
const LOAD_MAP: u8 = 0x18;
/// BPF_PSEUDO_MAP_FD
const PSEUDO_MAP: u8 = 1;
pub const MAP_LOOKUP: i32 = 1;
const TAIL_CALL: i32 = 12;

/// Action of the empty program: TCX_NEXT, or XDP_PASS.
pub const fn pass(kind: ProgramKind) -> i32 {
    match kind {
        ProgramKind::Tc => -1,
        ProgramKind::Xdp => 2,
    }
}

/// `return pass`.
pub fn empty(kind: ProgramKind) -> io::Result<OwnedFd> {
    sys::load(
        kind,
        &[insn(MOV_IMM, 0, 0, 0, pass(kind)), insn(EXIT, 0, 0, 0, 0)],
    )
}

/// Offset of the bytes that a wrapper writes, in an IPv4 frame without tags or options: TTL to the end of the
/// TCP header, which is four 8-byte words.
pub const HEADER_AT: usize = 22;
/// Their number.
pub const HEADER_LEN: usize = 32;
/// Programs that a wrapper can call; an entry says by number which.
pub const TARGETS: usize = 2;

/// One entry of a wrapper's array.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Written over the frame at [`HEADER_AT`].
    pub bytes: [u8; HEADER_LEN],
    /// Which of the wrapper's targets is called.
    pub target: u64,
}

/// A wrapper, loaded; its array of headers may serve several.
pub struct Wrapper {
    /// The program to run.
    pub program: OwnedFd,
    position: OwnedFd,
    _targets: OwnedFd,
}

impl Wrapper {
    /// A wrapper of `kind` around `targets`, over the `count` entries of `headers`.
    pub fn new(
        kind: ProgramKind,
        headers: RawFd,
        count: u32,
        targets: [RawFd; TARGETS],
    ) -> io::Result<Self> {
        let position = sys::table(TableKind::Array, 8, 1)?;
        let programs = sys::table(TableKind::Programs, 4, TARGETS as u32)?;
        let code = wrapper(
            kind,
            position.as_raw_fd(),
            headers,
            count,
            programs.as_raw_fd(),
        );
        let program = sys::load(kind, &code)?;
        for (at, target) in (0..).zip(targets) {
            sys::set(programs.as_raw_fd(), at, &target.to_ne_bytes())?;
        }
        Ok(Self {
            program,
            position,
            _targets: programs,
        })
    }

    /// Back to the first header.
    pub fn rewind(&self) -> io::Result<()> {
        sys::set(self.position.as_raw_fd(), 0, &0u64.to_ne_bytes())
    }
}

/// A map's address.
pub fn load_map(dst: u8, fd: RawFd) -> [u64; 2] {
    [insn(LOAD_MAP, dst, PSEUDO_MAP, 0, fd), 0]
}

fn wrapper(
    kind: ProgramKind,
    position: RawFd,
    headers: RawFd,
    count: u32,
    programs: RawFd,
) -> Vec<u64> {
    // offsets of data and data_end in __sk_buff and in xdp_md
    let (data, data_end) = match kind {
        ProgramKind::Tc => (76, 80),
        ProgramKind::Xdp => (0, 4),
    };
    let (offset, len) = (HEADER_AT as i16, HEADER_LEN as i16);
    let mut code = vec![
        insn(MOV_REG, 6, 1, 0, 0),
        insn(LOAD32, 7, 6, data, 0),
        insn(LOAD32, 8, 6, data_end, 0),
        insn(MOV_REG, 9, 7, 0, 0),
        insn(ADD_IMM, 9, 0, 0, i32::from(offset + len)),
    ];
    let mut to_end = vec![code.len()];
    code.push(insn(JGT_REG, 9, 8, 0, 0));
    // the position, and one further
    code.push(insn(STORE32_IMM, 10, 0, -4, 0));
    code.extend([insn(MOV_REG, 2, 10, 0, 0), insn(ADD_IMM, 2, 0, 0, -4)]);
    code.extend(load_map(1, position));
    code.push(insn(CALL, 0, 0, 0, MAP_LOOKUP));
    to_end.push(code.len());
    code.push(insn(JEQ_IMM, 0, 0, 0, 0));
    code.extend([
        insn(LOAD64, 1, 0, 0, 0),
        insn(MOV_REG, 2, 1, 0, 0),
        insn(ADD_IMM, 2, 0, 0, 1),
        insn(JLT_IMM, 2, 0, 1, count as i32),
        insn(MOV_IMM, 2, 0, 0, 0),
        insn(STORE64, 0, 2, 0, 0),
        insn(STORE32, 10, 1, -4, 0),
    ]);
    // the header there
    code.extend([insn(MOV_REG, 2, 10, 0, 0), insn(ADD_IMM, 2, 0, 0, -4)]);
    code.extend(load_map(1, headers));
    code.push(insn(CALL, 0, 0, 0, MAP_LOOKUP));
    to_end.push(code.len());
    code.push(insn(JEQ_IMM, 0, 0, 0, 0));
    for at in (0..len).step_by(8) {
        code.push(insn(LOAD64, 1, 0, at, 0));
        code.push(insn(STORE64, 7, 1, offset + at, 0));
    }
    code.push(insn(LOAD32, 3, 0, len, 0));
    code.push(insn(MOV_REG, 1, 6, 0, 0));
    code.extend(load_map(2, programs));
    code.push(insn(CALL, 0, 0, 0, TAIL_CALL));
    let end = code.len();
    for jump in to_end {
        code[jump] |= ((end - jump - 1) as u16 as u64) << 16;
    }
    // an action that no measured program returns
    code.extend([insn(MOV_IMM, 0, 0, 0, 99), insn(EXIT, 0, 0, 0, 0)]);
    code
}

/// Looks the packet's IPv4 tuple up in `flows` and does nothing else: what the hash table alone costs.
pub fn bare_lookup(flows: RawFd) -> io::Result<OwnedFd> {
    // the end of the ports
    const END: i32 = 38;
    let mut code = vec![
        insn(LOAD32, 7, 1, 76, 0),
        insn(LOAD32, 8, 1, 80, 0),
        insn(MOV_REG, 9, 7, 0, 0),
        insn(ADD_IMM, 9, 0, 0, END),
    ];
    let short = code.len();
    code.push(insn(JGT_REG, 9, 8, 0, 0));
    // `FlowKey<[u8; 4]>` on the stack, in whole words as the programs do it
    code.extend([
        insn(LOAD32, 1, 7, 26, 0),
        insn(LOAD32, 2, 7, 30, 0),
        insn(LSH_IMM, 2, 0, 0, 32),
        insn(OR_REG, 1, 2, 0, 0),
        insn(STORE64, 10, 1, -16, 0),
        insn(LOAD32, 1, 7, 34, 0),
        insn(LOAD8, 2, 7, 23, 0),
        insn(LSH_IMM, 2, 0, 0, 32),
        insn(OR_REG, 1, 2, 0, 0),
        insn(STORE64, 10, 1, -8, 0),
        insn(MOV_REG, 2, 10, 0, 0),
        insn(ADD_IMM, 2, 0, 0, -16),
    ]);
    code.extend(load_map(1, flows));
    code.push(insn(CALL, 0, 0, 0, MAP_LOOKUP));
    let miss = code.len();
    code.push(insn(JEQ_IMM, 0, 0, 0, 0));
    code.extend([
        insn(LOAD64, 1, 0, 0, 0),
        insn(MOV_IMM, 0, 0, 0, pass(ProgramKind::Tc)),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    let end = code.len();
    for jump in [short, miss] {
        code[jump] |= ((end - jump - 1) as u16 as u64) << 16;
    }
    code.extend([insn(MOV_IMM, 0, 0, 0, MISS), insn(EXIT, 0, 0, 0, 0)]);
    sys::load(ProgramKind::Tc, &code)
}

/// What [`bare_lookup`] returns for a tuple that is not there.
pub const MISS: i32 = 98;

/// The far end of the wire, as a network is one: what goes to the sources of [`spoof`] goes elsewhere, the rest to
/// this host. (What XDP sends by a veth only arrives in time where the other end has an XDP program, too.)
pub fn wire_end() -> io::Result<OwnedFd> {
    // the end of the IPv4 header
    const END: i32 = 34;
    // ETH_P_IP; 198.18 and 198.19 without the bit that tells them apart, in memory order
    const IPV4: i32 = 0x0008;
    const NET: i32 = 0x12c6;
    let mut code = vec![
        insn(LOAD32, 2, 1, 0, 0),
        insn(LOAD32, 3, 1, 4, 0),
        insn(MOV_REG, 4, 2, 0, 0),
        insn(ADD_IMM, 4, 0, 0, END),
        insn(JGT_REG, 4, 3, 6, 0),
        insn(LOAD16, 4, 2, 12, 0),
        insn(JEQ_IMM, 4, 0, 1, IPV4),
        insn(JA, 0, 0, 3, 0),
        insn(LOAD16, 4, 2, 30, 0),
        insn(AND_IMM, 4, 0, 0, 0xfeff),
        insn(JEQ_IMM, 4, 0, 2, NET),
    ];
    for action in [pass(ProgramKind::Xdp), XDP_DROP] {
        code.extend([insn(MOV_IMM, 0, 0, 0, action), insn(EXIT, 0, 0, 0, 0)]);
    }
    sys::load(ProgramKind::Xdp, &code)
}

/// XDP_DROP
const XDP_DROP: i32 = 1;

/// Offsets of what [`spoof`] writes, in an IPv4 frame without tags or options.
const IP_CHECK: i16 = 24;
const SOURCE: i16 = 26;
const SOURCE_PORT: i16 = 34;
const GET_PRANDOM_U32: i32 = 7;
pub const REDIRECT: i32 = 23;

/// Gives each frame a random source of 198.18.0.0/15 (RFC 2544) and a random port above 1023, mends its checksums,
/// and sends it out of a device. `sums` are the sums of the frame with these two zero and without the
/// checksums: of the IP header, and of the transport's part; `check_at` is where the latter's checksum is.
pub fn spoof(ifindex: u32, sums: [u16; 2], check_at: i16) -> io::Result<OwnedFd> {
    // 198.18, in memory order
    const NET: i32 = 0x12c6;
    let mut code = vec![
        insn(MOV_REG, 6, 1, 0, 0),
        insn(CALL, 0, 0, 0, GET_PRANDOM_U32),
        insn(MOV_REG, 7, 0, 0, 0),
        insn(CALL, 0, 0, 0, GET_PRANDOM_U32),
        insn(MOV_REG, 8, 0, 0, 0),
        // r7: address; r8: port, in memory order
        insn(LSH_IMM, 7, 0, 0, 32),
        insn(RSH_IMM, 7, 0, 0, 40),
        insn(LSH_IMM, 7, 0, 0, 8),
        insn(MOV_REG, 1, 7, 0, 0),
        insn(AND_IMM, 1, 0, 0, 0x100),
        insn(RSH_IMM, 7, 0, 0, 16),
        insn(LSH_IMM, 7, 0, 0, 16),
        insn(OR_REG, 7, 1, 0, 0),
        insn(OR_IMM, 7, 0, 0, NET),
        insn(AND_IMM, 8, 0, 0, 0xffff),
        insn(OR_IMM, 8, 0, 0, 4),
        insn(LOAD32, 2, 6, 0, 0),
        insn(LOAD32, 3, 6, 4, 0),
        insn(MOV_REG, 1, 2, 0, 0),
        insn(ADD_IMM, 1, 0, 0, i32::from(check_at) + 2),
    ];
    let short = code.len();
    code.push(insn(JGT_REG, 1, 3, 0, 0));
    code.extend([
        insn(STORE32, 2, 7, SOURCE, 0),
        insn(STORE16, 2, 8, SOURCE_PORT, 0),
        // r4: both halves of the address
        insn(MOV_REG, 4, 7, 0, 0),
        insn(AND_IMM, 4, 0, 0, 0xffff),
        insn(RSH_IMM, 7, 0, 0, 16),
        insn(ADD_REG, 4, 7, 0, 0),
    ]);
    for (sum, at, with_port) in [(sums[0], IP_CHECK, false), (sums[1], check_at, true)] {
        code.push(insn(MOV_REG, 1, 4, 0, 0));
        code.push(insn(ADD_IMM, 1, 0, 0, i32::from(sum)));
        if with_port {
            code.push(insn(ADD_REG, 1, 8, 0, 0));
        }
        for _ in 0..2 {
            code.extend([
                insn(MOV_REG, 5, 1, 0, 0),
                insn(RSH_IMM, 5, 0, 0, 16),
                insn(AND_IMM, 1, 0, 0, 0xffff),
                insn(ADD_REG, 1, 5, 0, 0),
            ]);
        }
        code.push(insn(XOR_IMM, 1, 0, 0, 0xffff));
        code.push(insn(STORE16, 2, 1, at, 0));
    }
    code.extend([
        insn(MOV_IMM, 1, 0, 0, ifindex as i32),
        insn(MOV_IMM, 2, 0, 0, 0),
        insn(CALL, 0, 0, 0, REDIRECT),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    let end = code.len();
    code[short] |= ((end - short - 1) as u16 as u64) << 16;
    // XDP_DROP
    code.extend([insn(MOV_IMM, 0, 0, 0, 1), insn(EXIT, 0, 0, 0, 0)]);
    sys::load(ProgramKind::Xdp, &code)
}
