//! Answers `getsockopt(SO_ORIGINAL_DST)` and `IP6T_SO_ORIGINAL_DST` of programs in the gateway's cgroup, as
//! netfilter would (`net/netfilter/nf_conntrack_proto.c`, `getorigdst`): the destination that the client
//! asked for. It is in the flow's answering entry: what a packet from here to the client becomes.

use aya_ebpf::{
    EbpfContext as _, bindings::bpf_sockopt, macros::cgroup_sockopt, programs::SockoptContext,
};
use fsm_common::{
    bpf::Tables,
    flow::{FlowKey, V4, V6, nf},
    wire::l3::IpProto,
};

/// `SOL_IP` and `SOL_IPV6`.
const LEVELS: [i32; 2] = [0, 41];
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST`.
const ORIGINAL_DST: i32 = 80;
/// Let the kernel's own answer stand.
const KEEP: i32 = 1;

/// The program.
#[cgroup_sockopt(getsockopt)]
pub fn fsm_origin(ctx: SockoptContext) -> i32 {
    let raw: *mut bpf_sockopt = ctx.as_ptr().cast();
    // SAFETY: the context is valid while the program runs.
    let (level, name) = unsafe { ((*raw).level, (*raw).optname) };
    if name == ORIGINAL_DST && LEVELS.contains(&level) {
        let _ = answer(raw);
    }
    KEEP
}

/// Fields of `struct bpf_sock` (`linux/bpf.h`), each in its own width: the verifier refuses wider reads.
struct Socket {
    family: u32,
    proto: u32,
    local4: [u8; 4],
    local6: [u8; 16],
    lport: u16,
    peer4: [u8; 4],
    peer6: [u8; 16],
    pport: u16,
}

#[inline(always)]
fn answer(raw: *mut bpf_sockopt) -> Option<()> {
    let socket = read_socket(raw)?;
    // An IPv6 socket that talks IPv4 has a mapped address (RFC 4291 §2.5.5.2) and answers as IPv4.
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let head = |a: &[u8; 16]| {
        [
            a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11],
        ]
    };
    let is_mapped = socket.family == u32::from(<V6 as fsm_common::flow::Family>::AF)
        && u64::from_ne_bytes(*head(&socket.peer6).first_chunk::<8>()?)
            == u64::from_ne_bytes(*MAPPED.first_chunk::<8>()?)
        && socket.peer6[10] == 0xff
        && socket.peer6[11] == 0xff;
    let proto = if socket.proto == 0 {
        IpProto::TCP.0
    } else {
        socket.proto as u8
    };
    let (sport, dport) = (socket.lport.to_be_bytes(), socket.pport.to_be_bytes());
    if socket.family == 2 || is_mapped {
        let key = FlowKey {
            saddr: socket.local4,
            daddr: socket.peer4,
            sport,
            dport,
            proto,
            pad: [0; 3],
        };
        let (addr, port) = lookup::<V4>(&key)?;
        // struct sockaddr_in
        write(raw, 0, 2u16.to_ne_bytes())?;
        write(raw, 2, port)?;
        write(raw, 4, addr)?;
        write(raw, 8, [0; 8])?;
        return finish(raw, 16);
    }
    let key = FlowKey {
        saddr: socket.local6,
        daddr: socket.peer6,
        sport,
        dport,
        proto,
        pad: [0; 3],
    };
    let (addr, port) = lookup::<V6>(&key)?;
    // struct sockaddr_in6
    write(raw, 0, 10u16.to_ne_bytes())?;
    write(raw, 2, port)?;
    write(raw, 4, [0; 4])?;
    write(raw, 8, addr)?;
    write(raw, 24, [0; 4])?;
    finish(raw, 28)
}

#[inline(always)]
fn lookup<F: Tables>(key: &FlowKey<F::Addr>) -> Option<(F::Addr, [u8; 2])> {
    // SAFETY: map value, readable until the program ends.
    let flow = unsafe { &*F::find(key)? };
    if flow.nf & (nf::XNAT | nf::REPLY) != nf::XNAT | nf::REPLY {
        return None;
    }
    Some((flow.to_saddr, flow.to_sport))
}

#[inline(always)]
fn write<const N: usize>(raw: *mut bpf_sockopt, offset: usize, bytes: [u8; N]) -> Option<()> {
    // SAFETY: the context is valid; the write is compared with the buffer's end.
    unsafe {
        let at =
            core::ptr::read_volatile(&raw const (*raw).__bindgen_anon_2.optval) as usize + offset;
        let end = core::ptr::read_volatile(&raw const (*raw).__bindgen_anon_3.optval_end) as usize;
        if at + N > end {
            return None;
        }
        (at as *mut [u8; N]).write(bytes);
    }
    Some(())
}

#[inline(always)]
fn finish(raw: *mut bpf_sockopt, len: i32) -> Option<()> {
    // SAFETY: the context is valid; both fields are writable for getsockopt, each in its own width only.
    unsafe {
        core::ptr::write_volatile(&raw mut (*raw).optlen, len);
        core::ptr::write_volatile(&raw mut (*raw).retval, 0);
    }
    Some(())
}

#[inline(always)]
fn read_socket(raw: *mut bpf_sockopt) -> Option<Socket> {
    use core::ptr::read_volatile as read;
    // SAFETY: `sk` is checked for null; volatile keeps each read in the field's own width.
    unsafe {
        let sk = (*raw).__bindgen_anon_1.sk;
        if sk.is_null() {
            return None;
        }
        let words = |p: *const [u32; 4]| {
            let p: *const u32 = p.cast();
            let w = [read(p), read(p.add(1)), read(p.add(2)), read(p.add(3))];
            let (a, b, c, d) = (
                w[0].to_ne_bytes(),
                w[1].to_ne_bytes(),
                w[2].to_ne_bytes(),
                w[3].to_ne_bytes(),
            );
            [
                a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
                d[2], d[3],
            ]
        };
        Some(Socket {
            family: read(&raw const (*sk).family),
            proto: read(&raw const (*sk).protocol),
            local4: read(&raw const (*sk).src_ip4).to_ne_bytes(),
            local6: words(&raw const (*sk).src_ip6),
            // host order
            lport: read(&raw const (*sk).src_port) as u16,
            peer4: read(&raw const (*sk).dst_ip4).to_ne_bytes(),
            peer6: words(&raw const (*sk).dst_ip6),
            // network order, in its low half
            pport: u16::from_be(read(&raw const (*sk).dst_port) as u16),
        })
    }
}
