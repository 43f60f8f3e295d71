//! Tells the network that a virtual address is here: gratuitous ARP in both its forms (RFC 5227 §3, requests for
//! most hosts, replies for the rest), unsolicited neighbour advertisements (RFC 4861 §7.2.6). At once and a second
//! later where the address is new or its device has come up, then every `announce_s`.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use tracing::{debug, warn};

use crate::loader::vip::OnDevice;

/// When the second announcement follows the first.
const AGAIN: Duration = Duration::from_secs(1);

/// When each address is announced next.
#[derive(Debug, Default)]
pub struct Announcer {
    vips: Vec<OnDevice>,
    due: HashMap<(IpAddr, u32), Option<Instant>>,
}

impl Announcer {
    /// Takes another list over; what is new in it, or has got its carrier, is announced.
    pub fn sync(&mut self, vips: Vec<OnDevice>, now: Instant) {
        for vip in &vips {
            let was = |old: &&OnDevice| (old.addr, old.ifindex) == (vip.addr, vip.ifindex);
            let old = self.vips.iter().find(was);
            let is_news = old.is_none_or(|old| !old.is_running || old.mac != vip.mac);
            if vip.is_running && is_news {
                try_send(vip);
                self.due.insert((vip.addr, vip.ifindex), Some(now + AGAIN));
            }
        }
        self.vips = vips;
        let vips = &self.vips;
        self.due.retain(|key, _| {
            vips.iter()
                .any(|vip| (vip.addr, vip.ifindex) == *key && vip.is_running)
        });
    }

    /// Sends what is due.
    pub fn step(&mut self, now: Instant) {
        for vip in &self.vips {
            let Some(due) = self.due.get_mut(&(vip.addr, vip.ifindex)) else {
                continue;
            };
            if due.is_some_and(|at| at <= now) {
                try_send(vip);
                *due =
                    (vip.announce_s > 0).then(|| now + Duration::from_secs(vip.announce_s.into()));
            }
        }
    }

    /// Announces one address, or all, now; gives where.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn announce(&self, only: Option<IpAddr>) -> io::Result<Vec<&OnDevice>> {
        let meant = |vip: &&OnDevice| only.is_none_or(|addr| addr == vip.addr);
        let list: Vec<&OnDevice> = self.vips.iter().filter(meant).collect();
        for vip in &list {
            send(vip)?;
        }
        Ok(list)
    }
}

fn try_send(vip: &OnDevice) {
    match send(vip) {
        Ok(()) => debug!(address = %vip.addr, interface = vip.name, "announced"),
        Err(error) => {
            warn!(address = %vip.addr, interface = vip.name, "not announced: {error}");
        }
    }
}

fn send(vip: &OnDevice) -> io::Result<()> {
    let socket = packet_socket()?;
    match vip.addr {
        IpAddr::V4(addr) => {
            for operation in [ARP_REQUEST, ARP_REPLY] {
                send_frame(&socket, vip.ifindex, &arp(vip.mac, addr, operation))?;
            }
            Ok(())
        }
        IpAddr::V6(addr) => send_frame(&socket, vip.ifindex, &advertisement(vip.mac, addr)),
    }
}

fn packet_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: plain call; protocol 0 receives nothing.
    match unsafe { libc::socket(libc::AF_PACKET, kind, 0) } {
        fd if fd >= 0 => {
            // SAFETY: the kernel has just given us this descriptor.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

fn send_frame(socket: &OwnedFd, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: zero is a value of this struct of integers.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = ifindex as i32;
    to.sll_protocol = u16::from_be_bytes([frame[12], frame[13]]).to_be();
    let size = size_of::<libc::sockaddr_ll>() as u32;
    // SAFETY: frame and address live through the call, with their sizes.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;

/// RFC 826 over Ethernet, to everybody, about the sender itself.
fn arp(mac: [u8; 6], addr: Ipv4Addr, operation: u8) -> Vec<u8> {
    let mut frame = [0xff; 6].to_vec();
    frame.extend(mac);
    // ARP; Ethernet, IPv4, lengths of their addresses.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation]);
    frame.extend(mac);
    frame.extend(addr.octets());
    frame.extend(if operation == ARP_REQUEST {
        [0; 6]
    } else {
        mac
    });
    frame.extend(addr.octets());
    frame
}

/// RFC 4861 §4.4: to all nodes, override, with the target's link-layer address.
fn advertisement(mac: [u8; 6], addr: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const OVERRIDE: u8 = 0x20;
    let mut message = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(addr.octets());
    message.extend([2, 1]);
    message.extend(mac);
    let length = message.len() as u8;
    let mut summed = addr.octets().to_vec();
    summed.extend(ALL_NODES.octets());
    summed.extend([0, 0, 0, length, 0, 0, 0, 58]);
    summed.extend(&message);
    let sum: u32 = summed
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let check = !(((sum & 0xffff) + (sum >> 16)) as u16);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1];
    frame.extend(mac);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, length, 58, 255]);
    frame.extend(addr.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use fsm_common::checksum;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    #[test]
    fn both_forms_of_gratuitous_arp_name_the_sender_twice() {
        for operation in [ARP_REQUEST, ARP_REPLY] {
            let frame = arp(MAC, Ipv4Addr::new(10, 0, 0, 9), operation);
            assert_eq!((frame.len(), frame[21]), (42, operation));
            assert_eq!((&frame[..6], &frame[22..28]), (&[0xff; 6][..], &MAC[..]));
            assert_eq!(
                (&frame[28..32], &frame[38..42]),
                (&[10, 0, 0, 9][..], &[10, 0, 0, 9][..])
            );
        }
    }

    #[test]
    fn an_advertisement_is_neighbour_discovery_with_a_right_checksum() {
        let frame = advertisement(MAC, "fd00::9".parse().unwrap());
        let parsed = fsm_common::parse::parse(frame.as_slice()).unwrap();
        let fsm_common::parse::Packet::V6(packet) = parsed else {
            panic!("{parsed:?}")
        };
        assert!(packet.is_neighbour_discovery());
        // Pseudo header and message sum up to all ones.
        let addresses = checksum::sum(frame.as_slice(), 22, 32).unwrap();
        let rest = u32::from(32u16.to_be()) + u32::from(u16::from_ne_bytes([0, 58]));
        let message = checksum::sum(frame.as_slice(), 54, 32).unwrap();
        assert_eq!(checksum::fold(addresses + rest + message), 0xffff);
    }

    #[test]
    fn what_is_new_or_up_again_is_due_a_second_later_and_then_at_its_times() {
        // The loopback takes frames and delivers them to nobody.
        let vip = |is_running| OnDevice {
            addr: IpAddr::from([127, 0, 0, 9]),
            ifindex: 1,
            name: "lo".into(),
            mac: MAC,
            is_running,
            announce_s: 30,
        };
        let (mut announcer, start) = (Announcer::default(), Instant::now());
        let at = |s| start + Duration::from_secs(s);
        let key = (vip(true).addr, 1);
        announcer.sync(vec![vip(false)], start);
        assert!(announcer.due.is_empty());
        announcer.sync(vec![vip(true)], start);
        assert_eq!(announcer.due[&key], Some(at(1)));
        announcer.sync(vec![vip(true)], at(9));
        assert_eq!(announcer.due[&key], Some(at(1)), "nothing has changed");
        announcer.step(at(1));
        assert_eq!(announcer.due[&key], Some(at(31)));
        announcer.sync(Vec::new(), at(2));
        assert!(announcer.due.is_empty());
    }
}
