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
const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    code as u64
        | (dst as u64) << 8
        | (src as u64) << 12
        | (off as u16 as u64) << 16
        | (imm as u32 as u64) << 32
}

const MOV_IMM: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const ADD_IMM: u8 = 0x07;
const LOAD32: u8 = 0x61;
const LOAD64: u8 = 0x79;
const STORE32: u8 = 0x63;
const STORE64: u8 = 0x7b;
const STORE32_IMM: u8 = 0x62;
const JEQ_IMM: u8 = 0x15;
const JGT_REG: u8 = 0x2d;
const JLT_IMM: u8 = 0xa5;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD_MAP: u8 = 0x18;
/// BPF_PSEUDO_MAP_FD
const PSEUDO_MAP: u8 = 1;
const MAP_LOOKUP: i32 = 1;
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

/// Offset of the bytes that a wrapper writes, in an IPv4 frame without tags or options: TTL, protocol,
/// checksum, addresses and ports, which fill two 8-byte words.
pub const HEADER_AT: usize = 22;
/// Their number.
pub const HEADER_LEN: usize = 16;

/// A wrapper, loaded; its array of headers may serve several.
pub struct Wrapper {
    /// The program to run.
    pub program: OwnedFd,
    position: OwnedFd,
    _target: OwnedFd,
}

impl Wrapper {
    /// A wrapper of `kind` around `target`, over the `count` entries of `headers`.
    pub fn new(kind: ProgramKind, headers: RawFd, count: u32, target: RawFd) -> io::Result<Self> {
        let position = sys::table(TableKind::Array, 8, 1)?;
        let programs = sys::table(TableKind::Programs, 4, 1)?;
        let code = wrapper(
            kind,
            position.as_raw_fd(),
            headers,
            count,
            programs.as_raw_fd(),
        );
        let program = sys::load(kind, &code)?;
        sys::set(programs.as_raw_fd(), 0, &target.to_ne_bytes())?;
        Ok(Self {
            program,
            position,
            _target: programs,
        })
    }

    /// Back to the first header.
    pub fn rewind(&self) -> io::Result<()> {
        sys::set(self.position.as_raw_fd(), 0, &0u64.to_ne_bytes())
    }
}

fn load_map(dst: u8, fd: RawFd) -> [u64; 2] {
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
    code.push(insn(MOV_REG, 1, 6, 0, 0));
    code.extend(load_map(2, programs));
    code.push(insn(MOV_IMM, 3, 0, 0, 0));
    code.push(insn(CALL, 0, 0, 0, TAIL_CALL));
    let end = code.len();
    for jump in to_end {
        code[jump] |= ((end - jump - 1) as u16 as u64) << 16;
    }
    // an action that no measured program returns
    code.extend([insn(MOV_IMM, 0, 0, 0, 99), insn(EXIT, 0, 0, 0, 0)]);
    code
}
