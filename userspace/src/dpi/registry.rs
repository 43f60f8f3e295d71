//! What can be recognised: one row a protocol. A new one is a file of its own and a row in [`PARSERS`]; recognition,
//! tests and the policy's names walk the list.

use super::{
    amqp, cassandra, couchbase, dhcp, dns, ftp, http, http2, imap, kafka, ldap, memcached, mongodb,
    mqtt, mysql, ntp, openwire, pop3, postgresql, quic, radius, rdp, redis, rtsp, sip, smb, smtp,
    snmp, ssh, stomp, syslog, tds, telnet, tftp, tls, tns, zookeeper,
};

/// Bytes of a value that is told of a flow ([`super::Event::App`]); the rest is cut off.
const MAX_VALUE_BYTES: usize = 512;
/// Pairs that are told of a flow.
const MAX_PAIRS: usize = 16;
/// Pairs for which room is made at once.
const USUAL_PAIRS: usize = 5;

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that opened the flow.
    Client = 0,
    /// The other.
    Server = 1,
}

impl Side {
    /// The one it talks to.
    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A stream: a head is its first bytes, however they were cut into segments.
    Tcp,
    /// Datagrams: a head is one of them.
    Udp,
}

/// The first bytes that one side said.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// All there are so far.
    pub bytes: &'a [u8],
    /// How many of them were there when it was asked last.
    pub seen: usize,
    /// No more will come: a datagram, or what is kept of a stream is full.
    pub is_last: bool,
    /// Who said it.
    pub side: Side,
    /// What carried it.
    pub transport: Transport,
    /// Ports of client and server: a hint at most.
    pub ports: [u16; 2],
    /// What is kept of the other side's first bytes: all of them, while that side's protocol is looked for in a stream;
    /// else none.
    pub other: &'a [u8],
}

impl Head<'_> {
    /// What to say when the bytes end before they tell.
    pub fn more(&self) -> Probe {
        match self.is_last {
            true => Probe::No,
            false => Probe::More,
        }
    }

    /// The same of a head that is being read.
    pub fn more_to_read(&self) -> Step {
        match self.is_last {
            true => Step::Done,
            false => Step::More,
        }
    }
}

/// Whether it is this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// It is not.
    No,
    /// So far it could be.
    More,
    /// It is.
    Yes,
}

/// Whether a side's head has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes on.
    More,
    /// Nothing more is wanted of this side: read, or not readable.
    Done,
}

/// What was learned of a flow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info(pub Vec<(&'static str, String)>);

impl Info {
    /// Adds a value that the peer chose: bounded, control characters escaped, what is not UTF-8 replaced. The first
    /// of a name stays.
    pub fn add(&mut self, name: &'static str, value: &[u8]) {
        if value.is_empty() {
            return;
        }
        let cut = &value[..value.len().min(MAX_VALUE_BYTES)];
        let is_plain = cut.iter().all(|b| matches!(b, b' '..=b'~'));
        self.add_word(
            name,
            match std::str::from_utf8(cut) {
                Ok(text) if is_plain => text.to_owned(),
                _ => escaped(&String::from_utf8_lossy(cut)),
            },
        );
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(other, _)| *other == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Adds a value that the parser chose.
    pub fn add_word(&mut self, name: &'static str, value: String) {
        let is_known = self.0.iter().any(|(other, _)| *other == name);
        if is_known || self.0.len() >= MAX_PAIRS {
            return;
        }
        if self.0.is_empty() {
            self.0.reserve(USUAL_PAIRS);
        }
        self.0.push((name, value));
    }
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => safe.extend(c.escape_default()),
            false => safe.push(c),
        }
    }
    safe
}

/// A protocol. Its functions are pure: they are asked again with more bytes.
pub trait Parser: Sync {
    /// Its name (CONTRACT §2).
    fn app(&self) -> &'static str;

    /// What carries it.
    fn is_over(&self, transport: Transport) -> bool;

    /// Whether these are the first bytes of it. "Unknown" is better than wrong.
    fn probe(&self, head: &Head<'_>) -> Probe;

    /// Takes what is worth telling from a head, after [`Probe::Yes`] for either side; adds to `info` once, when it says
    /// [`Step::Done`].
    fn read(&self, head: &Head<'_>, info: &mut Info) -> Step;

    /// A closer name, when what was read says so: a protocol that begins as another. Policies are asked again with it.
    fn refine(&self, _: &Info) -> Option<&'static str> {
        None
    }

    /// Talks by which all parsers are tried against each other.
    #[cfg(test)]
    fn samples(&self) -> &'static [super::samples::Sample] {
        &[]
    }
}

/// All of them; where two would say yes, the first is it.
pub static PARSERS: &[&dyn Parser] = &[
    &http::Http,
    &tls::Tls,
    &ssh::Ssh,
    &dns::Mdns,
    &dns::Dns,
    &mysql::MySql,
    &postgresql::PostgreSql,
    &redis::Redis,
    &mongodb::MongoDb,
    &couchbase::Couchbase,
    &memcached::Memcached,
    &smtp::Smtp,
    &ftp::Ftp,
    &imap::Imap,
    &pop3::Pop3,
    &mqtt::Mqtt,
    &amqp::Amqp,
    &stomp::Stomp,
    &openwire::OpenWire,
    &zookeeper::ZooKeeper,
    &cassandra::Cassandra,
    &kafka::Kafka,
    &http2::Http2,
    &snmp::Snmp,
    &ldap::Ldap,
    &ntp::Ntp,
    &dhcp::Dhcp,
    &tftp::Tftp,
    &syslog::Syslog,
    &radius::Radius,
    &sip::Sip,
    &rtsp::Rtsp,
    &smb::Smb,
    &rdp::Rdp,
    &telnet::Telnet,
    &tds::Tds,
    &tns::Tns,
    &quic::Quic,
];

/// Reads big-endian fields off the front of bytes; `None` where they end.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        let bytes = self.take(4)?;
        Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from(self.u32()?) << 32 | u64::from(self.u32()?))
    }

    /// Two bytes, the lower first.
    pub fn u16_le(&mut self) -> Option<u16> {
        self.u16().map(u16::swap_bytes)
    }

    /// Four bytes, the lowest first.
    pub fn u32_le(&mut self) -> Option<u32> {
        self.u32().map(u32::swap_bytes)
    }

    /// Bytes up to a zero byte, which goes too.
    pub fn until_nul(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|b| *b == 0)?;
        let text = self.take(end)?;
        self.take(1)?;
        Some(text)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.take(2)
            .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Three bytes.
    pub fn u24(&mut self) -> Option<usize> {
        let bytes = self.take(3)?;
        Some(usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]))
    }

    /// Bytes with their length in one byte before them.
    pub fn with_u8_len(&mut self) -> Option<Reader<'a>> {
        let len = self.u8()?;
        self.take(len.into()).map(Reader)
    }

    /// Bytes with their length in two bytes before them.
    pub fn with_u16_len(&mut self) -> Option<Reader<'a>> {
        let len = self.u16()?;
        self.take(len.into()).map(Reader)
    }
}

/// For parsers' tests: what a probe says of a stream's bytes, and what is read.
#[cfg(test)]
pub mod check {
    use super::*;

    /// A head of `side` over `transport`.
    pub fn head(bytes: &[u8], side: Side, transport: Transport) -> Head<'_> {
        Head {
            bytes,
            seen: 0,
            is_last: transport == Transport::Udp,
            side,
            transport,
            ports: [40000, 40001],
            other: &[],
        }
    }

    /// Probes every prefix: `More` until it says something else, which then stays.
    pub fn probe_all(parser: &dyn Parser, bytes: &[u8], side: Side) -> Probe {
        let mut said = Probe::More;
        for len in 1..=bytes.len() {
            let mut head = head(&bytes[..len], side, Transport::Tcp);
            head.seen = len - 1;
            let now = parser.probe(&head);
            assert!(
                said == Probe::More || said == now,
                "{len} bytes: {said:?}, then {now:?}"
            );
            said = now;
        }
        said
    }

    /// Reads byte by byte until done, and at once; both must give the same.
    pub fn read_all(parser: &dyn Parser, bytes: &[u8], side: Side) -> Option<Info> {
        let mut whole = Info::default();
        let step = parser.read(&head(bytes, side, Transport::Tcp), &mut whole);
        let mut parts = Info::default();
        let done = (1..=bytes.len()).find(|len| {
            let mut head = head(&bytes[..*len], side, Transport::Tcp);
            head.seen = len - 1;
            parser.read(&head, &mut parts) == Step::Done
        });
        assert_eq!((step == Step::Done, &whole), (done.is_some(), &parts));
        done.map(|_| whole)
    }
}
