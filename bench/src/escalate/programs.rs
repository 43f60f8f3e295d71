//! The kernel's part of `escalate`, by hand: the far end that counts, and the least that takes packets to a pair of
//! devices and back.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use crate::{
    asm::{
        ADD_IMM, CALL, EXIT, JA, JEQ_IMM, LOAD32, MAP_LOOKUP, MOV_IMM, MOV_REG, REDIRECT, STORE32,
        STORE32_IMM, insn, load_map, pass,
    },
    sys::{self, ProgramKind, TableKind},
};

/// BPF_LD | BPF_ABS, of bytes and of big-endian 16 bits: what is not there ends the program with 0, TCX_PASS. The
/// context is in r6.
const PACKET8: u8 = 0x30;
const PACKET16: u8 = 0x28;
/// BPF_STX | BPF_ATOMIC | BPF_DW, with BPF_ADD.
const ATOMIC_ADD: u8 = 0xdb;
const JNE_IMM: u8 = 0x55;
/// TCX_DROP
const DROP: i32 = 2;
/// Offsets in `__sk_buff`.
const LEN: i16 = 0;
const MARK: i16 = 8;
/// Offsets in an IPv4 frame without tags and options.
const ETHERTYPE: i32 = 12;
const PROTO: i32 = 23;
const DPORT: i32 = 36;
const IPV4: i32 = 0x0800;
const UDP: i32 = 17;
/// `skb->mark` of what has come back.
const BACK: i32 = 0x6265_6e63;
/// BPF_F_INGRESS
const INGRESS: i32 = 1;

/// Jumps that are taken to the program's last part.
struct Code {
    insns: Vec<u64>,
    to_end: Vec<usize>,
}

impl Code {
    fn new() -> Self {
        Self {
            insns: vec![insn(MOV_REG, 6, 1, 0, 0)],
            to_end: Vec::new(),
        }
    }

    fn extend(&mut self, insns: impl IntoIterator<Item = u64>) {
        self.insns.extend(insns);
    }

    fn end_if(&mut self, jump: u8, register: u8, value: i32) {
        self.to_end.push(self.insns.len());
        self.insns.push(insn(jump, register, 0, 0, value));
    }

    /// Datagrams only.
    fn only_udp(&mut self) {
        self.extend([insn(PACKET16, 0, 0, 0, ETHERTYPE)]);
        self.end_if(JNE_IMM, 0, IPV4);
        self.extend([insn(PACKET8, 0, 0, 0, PROTO)]);
        self.end_if(JNE_IMM, 0, UDP);
    }

    /// Where those jumps end, the packet goes on.
    fn load(mut self) -> io::Result<OwnedFd> {
        let end = self.insns.len();
        for jump in self.to_end {
            self.insns[jump] |= ((end - jump - 1) as u16 as u64) << 16;
        }
        self.insns.extend([
            insn(MOV_IMM, 0, 0, 0, pass(ProgramKind::Tc)),
            insn(EXIT, 0, 0, 0, 0),
        ]);
        sys::load(ProgramKind::Tc, &self.insns)
    }
}

/// Counts datagrams to a port, and drops them.
pub struct Sink {
    /// To attach.
    pub program: OwnedFd,
    counts: OwnedFd,
}

impl Sink {
    /// For this port.
    pub fn new(port: u16) -> io::Result<Self> {
        let counts = sys::table(TableKind::Array, 16, 1)?;
        let mut code = Code::new();
        code.only_udp();
        code.extend([insn(PACKET16, 0, 0, 0, DPORT)]);
        code.end_if(JNE_IMM, 0, i32::from(port));
        code.extend([
            insn(STORE32_IMM, 10, 0, -4, 0),
            insn(MOV_REG, 2, 10, 0, 0),
            insn(ADD_IMM, 2, 0, 0, -4),
        ]);
        code.extend(load_map(1, counts.as_raw_fd()));
        code.extend([insn(CALL, 0, 0, 0, MAP_LOOKUP)]);
        code.end_if(JEQ_IMM, 0, 0);
        code.extend([
            insn(MOV_IMM, 1, 0, 0, 1),
            insn(ATOMIC_ADD, 0, 1, 0, 0),
            insn(LOAD32, 1, 6, LEN, 0),
            insn(ATOMIC_ADD, 0, 1, 8, 0),
            insn(MOV_IMM, 0, 0, 0, DROP),
            insn(EXIT, 0, 0, 0, 0),
        ]);
        Ok(Self {
            program: code.load()?,
            counts,
        })
    }

    /// Packets and bytes so far.
    pub fn counts(&self) -> io::Result<[u64; 2]> {
        let mut counts = [0; 2];
        sys::get(self.counts.as_raw_fd(), 0, &mut counts)?;
        Ok(counts)
    }
}

/// Datagrams that arrive go out of another device, until they come back.
pub fn take(to: u32) -> io::Result<OwnedFd> {
    let mut code = Code::new();
    code.extend([insn(LOAD32, 0, 6, MARK, 0)]);
    code.end_if(JEQ_IMM, 0, BACK);
    code.only_udp();
    code.extend([
        insn(MOV_IMM, 1, 0, 0, to as i32),
        insn(MOV_IMM, 2, 0, 0, 0),
        insn(CALL, 0, 0, 0, REDIRECT),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    code.load()
}

/// What comes back arrives again: with `end` as the last byte of its receiver's MAC on `first`, else on `second`.
pub fn give_back(end: u8, first: u32, second: u32) -> io::Result<OwnedFd> {
    let mut code = Code::new();
    code.only_udp();
    code.extend([
        insn(MOV_IMM, 1, 0, 0, BACK),
        insn(STORE32, 6, 1, MARK, 0),
        insn(PACKET8, 0, 0, 0, 5),
        insn(JEQ_IMM, 0, 0, 2, i32::from(end)),
        insn(MOV_IMM, 1, 0, 0, second as i32),
        insn(JA, 0, 0, 1, 0),
        insn(MOV_IMM, 1, 0, 0, first as i32),
        insn(MOV_IMM, 2, 0, 0, INGRESS),
        insn(CALL, 0, 0, 0, REDIRECT),
        insn(EXIT, 0, 0, 0, 0),
    ]);
    code.load()
}
