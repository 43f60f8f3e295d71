//! The programs and the host's parser on the same random frames: a frame is dropped as bad exactly where
//! `parse` says so, and otherwise goes on as it came. The same frames each time.

use fsm_common::{
    maps::role,
    parse::{Fragment, Packet, parse},
    reason::Reason,
};

use crate::support::{
    Hook, LO, alone,
    frame::{ACK, Frame, L4, SYN, ext, fragment_header, icmp, raw, tcp, udp},
    golden,
};

const FRAMES: usize = 6000;

/// xorshift64 (Marsaglia 2003).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 20) as usize % limit
    }

    pub fn byte(&mut self) -> u8 {
        self.next() as u8
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let (v4, v6) = (
        ["20.0.0.2:80", "10.1.0.2:40000"],
        ["[fd20::2]:80", "[fd10:1::2]:40000"],
    );
    let mut seeds: Vec<Vec<u8>> = golden::all()
        .into_iter()
        .map(|packet| packet.frame)
        .collect();
    for [src, dst] in [v4, v6] {
        let options = Frame {
            l4: L4::Tcp {
                flags: SYN,
                options: vec![1; 20],
            },
            ..tcp(src, dst, SYN)
        };
        seeds.push(options.bytes());
        seeds.push(
            tcp(src, dst, ACK)
                .tag(0x88a8, 1)
                .tag(0x8100, 2)
                .payload(&[9; 40])
                .bytes(),
        );
        seeds.extend(udp(src, dst).payload(&[7; 100]).fragments(48));
    }
    seeds.push(
        Frame {
            options: vec![1; 20],
            ..udp(v4[0], v4[1])
        }
        .bytes(),
    );
    let chain = tcp(v6[0], v6[1], SYN)
        .ext(ext(0, 8))
        .ext(ext(43, 24))
        .ext(fragment_header(1, 0, false));
    seeds.push(chain.ext(ext(51, 16)).ext(ext(60, 8)).bytes());
    seeds.push(
        icmp("20.0.0.2", "10.1.0.2", 3)
            .payload(&tcp(v4[1], v4[0], ACK).bytes()[14..])
            .bytes(),
    );
    seeds.push(raw("20.0.0.2", "10.1.0.2", 132).bytes());
    seeds
}

fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut frame = seed.to_vec();
    for _ in 0..random.below(5) {
        let at = 12 + random.below(frame.len().clamp(14, 90) - 12);
        if let Some(byte) = frame.get_mut(at) {
            *byte = match random.below(4) {
                0 => random.byte(),
                1 => *byte ^ 1 << random.below(8),
                2 => [
                    0, 1, 4, 6, 17, 43, 44, 51, 58, 60, 0x45, 0x4f, 0x60, 0x80, 0x81, 0xff,
                ][random.below(16)],
                _ => byte.wrapping_add(1),
            };
        }
    }
    match random.below(8) {
        0 => frame.truncate(14 + random.below(frame.len() - 13)),
        1 => frame.extend((0..random.below(40)).map(|_| random.byte())),
        2 if random.below(4) == 0 => {
            frame = (0..14 + random.below(120)).map(|_| random.byte()).collect()
        }
        _ => {}
    }
    // The kernel takes no shorter skb of an IP type for a test run.
    let least = match frame[12..14] {
        [0x08, 0x00] => 34,
        [0x86, 0xdd] => 54,
        _ => 14,
    };
    frame.resize(frame.len().max(least), 0);
    frame
}

#[test]
fn both_hooks_and_the_host_agree_on_what_is_bad() {
    alone(|node| {
        node.device(LO, role::UPLINK, 0);
        let (mut random, seeds) = (Random(0x9e37_79b9_7f4a_7c15), seeds());
        let (mut bad, mut orphans) = (0, count(node, Reason::FragmentOrphan));
        for number in 0..FRAMES {
            let frame = mutate(&seeds[number % seeds.len()], &mut random);
            let parsed = parse(&frame[..]);
            bad += usize::from(parsed.is_err());
            // Without rules only a fragment that came first is dropped for another reason.
            let is_later = matches!(parsed,
                Ok(Packet::V4(p)) if p.fragment == Fragment::Later && p.is_flow())
                || matches!(parsed, Ok(Packet::V6(p)) if p.fragment == Fragment::Later && p.is_flow());
            for (hook, [drop, pass]) in [(Hook::Xdp, [1, 2]), (Hook::TcIn, [2, -1])] {
                let before = parsed.err().map(|reason| count(node, reason));
                let (action, out, _) = node.raw(hook, LO, &frame);
                let note = || format!("frame {number} at {hook:?}: {parsed:?} {frame:02x?}");
                assert_eq!(out, frame, "changed: {}", note());
                match (parsed, before) {
                    (Err(reason), Some(before)) => {
                        assert_eq!(
                            (action, count(node, reason)),
                            (drop, before + 1),
                            "{}",
                            note()
                        );
                    }
                    _ if hook == Hook::TcIn && is_later && action == drop => orphans += 1,
                    _ => assert_eq!(action, pass, "{}", note()),
                }
            }
        }
        assert_eq!(count(node, Reason::FragmentOrphan), orphans);
        // It was worth it.
        assert!(
            bad * 5 > FRAMES && bad * 5 < FRAMES * 4,
            "{bad} of {FRAMES} bad"
        );
    });
}

fn count(node: &crate::support::Node, reason: Reason) -> u64 {
    node.maps
        .reason
        .get(&(reason as u32), 0)
        .unwrap()
        .iter()
        .sum()
}
