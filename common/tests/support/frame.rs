//! Builds frames for tests, byte by byte and apart from the code under test: lengths and checksums come
//! out right, and [`check_sums`] verifies them by adding everything up again.

use std::net::{IpAddr, SocketAddr};

/// TCP flags as tests write them.
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// Protocol numbers as tests write them.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;

/// What follows the IP header.
#[derive(Clone, Debug)]
pub enum L4 {
    /// TCP with these flags and options.
    Tcp { flags: u8, options: Vec<u8> },
    /// UDP; without checksum where `sum` is false.
    Udp { sum: bool },
    /// ICMP or ICMPv6, by the family, of this type and code.
    Icmp(u8, u8),
    /// Another protocol: the payload follows at once.
    Raw(u8),
}

/// One frame to be; the ports of `src` and `dst` are used by TCP and UDP only.
#[derive(Clone, Debug)]
pub struct Frame {
    pub dmac: [u8; 6],
    pub smac: [u8; 6],
    /// (TPID, TCI), outermost first.
    pub tags: Vec<(u16, u16)>,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub ttl: u8,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv4 identification.
    pub id: u16,
    /// IPv6 extension headers: number, and all bytes (the first is filled in).
    pub exts: Vec<(u8, Vec<u8>)>,
    pub l4: L4,
    /// TCP sequence and acknowledgement numbers.
    pub seq: (u32, u32),
    /// TCP window field.
    pub window: u16,
    pub payload: Vec<u8>,
}

fn new(src: &str, dst: &str, l4: L4) -> Frame {
    let addr = |text: &str| {
        text.parse::<SocketAddr>()
            .unwrap_or_else(|e| panic!("{text}: {e}"))
    };
    Frame {
        dmac: [2, 0, 0, 0, 0, 1],
        smac: [2, 0, 0, 0, 0, 2],
        tags: Vec::new(),
        src: addr(src),
        dst: addr(dst),
        ttl: 64,
        options: Vec::new(),
        id: 0x1234,
        exts: Vec::new(),
        l4,
        seq: (1, 2),
        window: 0xffff,
        payload: Vec::new(),
    }
}

/// A TCP segment, `src` and `dst` as "address:port".
pub fn tcp(src: &str, dst: &str, flags: u8) -> Frame {
    new(
        src,
        dst,
        L4::Tcp {
            flags,
            options: Vec::new(),
        },
    )
}

/// A UDP datagram with "hello" in it.
pub fn udp(src: &str, dst: &str) -> Frame {
    new(src, dst, L4::Udp { sum: true }).payload(b"hello")
}

/// An ICMP or ICMPv6 message.
pub fn icmp(src: &str, dst: &str, kind: u8) -> Frame {
    new(&with_port(src), &with_port(dst), L4::Icmp(kind, 0)).payload(&[0, 1, 0, 1, 7, 7, 7, 7])
}

/// A packet of another protocol.
pub fn raw(src: &str, dst: &str, proto: u8) -> Frame {
    new(&with_port(src), &with_port(dst), L4::Raw(proto)).payload(&[0; 24])
}

fn with_port(addr: &str) -> String {
    if addr.contains(':') {
        format!("[{addr}]:0")
    } else {
        format!("{addr}:0")
    }
}

/// An Ethernet frame with anything in it.
pub fn ether(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An extension header of `len` bytes that says so; AH counts otherwise (RFC 4302 §2.2).
pub fn ext(kind: u8, len: usize) -> (u8, Vec<u8>) {
    let mut bytes = vec![0; len];
    bytes[1] = if kind == 51 { len / 4 - 2 } else { len / 8 - 1 } as u8;
    (kind, bytes)
}

/// An IPv6 fragment header; `offset` in units of 8 bytes.
pub fn fragment_header(id: u32, offset: u16, more: bool) -> (u8, Vec<u8>) {
    let mut bytes = vec![0, 0];
    bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
    bytes.extend(id.to_be_bytes());
    (44, bytes)
}

impl Frame {
    /// Adds a VLAN tag inside those already there.
    pub fn tag(mut self, tpid: u16, vlan: u16) -> Self {
        self.tags.push((tpid, vlan));
        self
    }

    /// Sets the TCP sequence and acknowledgement numbers.
    pub fn at(mut self, seq: u32, ack: u32) -> Self {
        self.seq = (seq, ack);
        self
    }

    /// Sets TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the payload.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Appends an extension header.
    pub fn ext(mut self, ext: (u8, Vec<u8>)) -> Self {
        self.exts.push(ext);
        self
    }

    /// UDP without a checksum.
    pub fn without_sum(mut self) -> Self {
        self.l4 = L4::Udp { sum: false };
        self
    }

    /// Other source and destination, the rest kept.
    pub fn with_tuple(mut self, src: &str, dst: &str) -> Self {
        (self.src, self.dst) = (src.parse().unwrap(), dst.parse().unwrap());
        self
    }

    fn proto(&self) -> u8 {
        match self.l4 {
            L4::Tcp { .. } => TCP,
            L4::Udp { .. } => UDP,
            L4::Icmp(..) => {
                if self.src.is_ipv6() {
                    58
                } else {
                    1
                }
            }
            L4::Raw(proto) => proto,
        }
    }

    /// Transport header and payload, checksum complete.
    pub fn datagram(&self) -> Vec<u8> {
        let ports = [self.src.port().to_be_bytes(), self.dst.port().to_be_bytes()].concat();
        let (mut bytes, check_at) = match &self.l4 {
            L4::Tcp { flags, options } => {
                let mut bytes = ports;
                bytes.extend(self.seq.0.to_be_bytes());
                bytes.extend(self.seq.1.to_be_bytes());
                bytes.extend([((20 + options.len()) * 4) as u8, *flags]);
                bytes.extend(self.window.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(options);
                (bytes, Some(16))
            }
            L4::Udp { sum } => {
                let mut bytes = ports;
                bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                bytes.extend([0, 0]);
                (bytes, sum.then_some(6))
            }
            L4::Icmp(kind, code) => (vec![*kind, *code, 0, 0], Some(2)),
            L4::Raw(_) => (Vec::new(), None),
        };
        bytes.extend(&self.payload);
        if let Some(at) = check_at {
            let mut sum = add(&bytes);
            if self.proto() != 1 {
                sum += pseudo(self.src.ip(), self.dst.ip(), self.proto(), bytes.len());
            }
            let check = match !carry(sum) {
                0 if matches!(self.l4, L4::Udp { .. }) => 0xffff,
                check => check,
            };
            bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
        }
        bytes
    }

    /// The whole frame.
    pub fn bytes(&self) -> Vec<u8> {
        self.around(0, &self.datagram())
    }

    /// The frame's datagram in two fragments, cut at `at` bytes (a multiple of 8).
    pub fn fragments(&self, at: usize) -> [Vec<u8>; 2] {
        let datagram = self.datagram();
        let units = (at / 8) as u16;
        if self.src.is_ipv6() {
            let part = |offset, more, data: &[u8]| {
                self.clone()
                    .ext(fragment_header(u32::from(self.id), offset, more))
                    .around(0, data)
            };
            return [
                part(0, true, &datagram[..at]),
                part(units, false, &datagram[at..]),
            ];
        }
        [
            self.around(0x2000, &datagram[..at]),
            self.around(units, &datagram[at..]),
        ]
    }

    /// Link and network headers around `data`; `fragment` is IPv4's field of flags and offset.
    pub fn around(&self, fragment: u16, data: &[u8]) -> Vec<u8> {
        let mut frame = [self.dmac, self.smac].concat();
        for (tpid, tci) in &self.tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend(0x0800u16.to_be_bytes());
                let header = 20 + self.options.len();
                let mut ip = vec![0x40 | (header / 4) as u8, 0];
                ip.extend(((header + data.len()) as u16).to_be_bytes());
                ip.extend(self.id.to_be_bytes());
                ip.extend(fragment.to_be_bytes());
                ip.extend([self.ttl, self.proto(), 0, 0]);
                ip.extend(src.octets());
                ip.extend(dst.octets());
                ip.extend(&self.options);
                let check = !carry(add(&ip));
                ip[10..12].copy_from_slice(&check.to_be_bytes());
                frame.extend(ip);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend(0x86ddu16.to_be_bytes());
                let exts: usize = self.exts.iter().map(|(_, bytes)| bytes.len()).sum();
                let kinds: Vec<u8> = self
                    .exts
                    .iter()
                    .map(|(kind, _)| *kind)
                    .chain([self.proto()])
                    .collect();
                frame.extend([0x60, 0, 0, 0]);
                frame.extend(((exts + data.len()) as u16).to_be_bytes());
                frame.extend([kinds[0], self.ttl]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
                for (i, (_, bytes)) in self.exts.iter().enumerate() {
                    frame.push(kinds[i + 1]);
                    frame.extend(&bytes[1..]);
                }
            }
            mixed => panic!("mixed families: {mixed:?}"),
        }
        frame.extend(data);
        frame
    }
}

fn add(bytes: &[u8]) -> u64 {
    let word = |pair: &[u8]| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low));
    bytes.chunks(2).map(word).sum()
}

fn carry(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> u64 {
    let addr = |ip| match ip {
        IpAddr::V4(v4) => add(&v4.octets()),
        IpAddr::V6(v6) => add(&v6.octets()),
    };
    addr(src) + addr(dst) + u64::from(proto) + len as u64
}

/// Adds up every checksum of an untagged IP frame; the error names the wrong one.
pub fn check_sums(frame: &[u8]) -> Result<(), String> {
    let ip = &frame[14..];
    let (src, dst, proto, data, is_part): (IpAddr, IpAddr, u8, &[u8], bool) = if ip[0] >> 4 == 4 {
        let header = usize::from(ip[0] & 15) * 4;
        if carry(add(&ip[..header])) != 0xffff {
            return Err("IPv4 header".into());
        }
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let is_part = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
        let addr = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap());
        (addr(12), addr(16), ip[9], &ip[header..total], is_part)
    } else {
        let (mut at, mut proto, mut is_part) = (40, ip[6], false);
        while [0, 43, 44, 51, 60].contains(&proto) {
            is_part |= proto == 44 && u16::from_be_bytes([ip[at + 2], ip[at + 3]]) & !6 != 0;
            let len = usize::from(ip[at + 1]);
            let len = match proto {
                44 => 8,
                51 => (len + 2) * 4,
                _ => (len + 1) * 8,
            };
            (proto, at) = (ip[at], at + len);
        }
        let end = 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]]));
        let addr = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap());
        (addr(8), addr(24), proto, &ip[at..end], is_part)
    };
    let sum = match proto {
        _ if is_part => return Ok(()),
        UDP if data[6..8] == [0, 0] => return Ok(()),
        1 => add(data),
        TCP | UDP | 58 => add(data) + pseudo(src, dst, proto, data.len()),
        _ => return Ok(()),
    };
    if carry(sum) == 0xffff {
        Ok(())
    } else {
        Err(format!("protocol {proto}"))
    }
}
