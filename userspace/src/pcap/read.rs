//! Capture files: pcap and pcapng, of either byte order, gzip'd or not. Gives each packet as it was captured; what its
//! link type means is [`super::link`]'s matter. Memory is bounded by the largest block that is taken.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    num::NonZeroU64,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use flate2::read::MultiGzDecoder;
use pcap_parser::{
    Block, PcapBlockOwned, PcapError, create_reader,
    traits::{PcapNGPacketBlock, PcapReaderIterator},
};

/// What is read at once; a block longer than it makes the buffer grow.
const BUFFER_BYTES: usize = 256 << 10;
/// The longest block that is taken: packets have 256 KiB at most (Wireshark's `WTAP_MAX_PACKET_SIZE_STANDARD`), and
/// lists of names or secrets may be longer.
const MAX_BLOCK_BYTES: usize = 16 << 20;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const NS_PER_S: u64 = 1_000_000_000;

/// A packet of a capture.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// When it was captured, nanoseconds since 1970.
    pub time_ns: u64,
    /// Link type, <https://www.tcpdump.org/linktypes.html>.
    pub link: u32,
    /// What was captured of it.
    pub bytes: &'a [u8],
    /// Its length on the wire.
    pub wire_bytes: usize,
}

/// Why a file gives no packets, or no more.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be opened or read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("not a pcap or pcapng file: {0}")]
    NotACapture(String),
    /// It is one, and from some place on makes no sense.
    #[error("broken after {packets} packets: {what}")]
    Broken {
        /// Packets before that place.
        packets: u64,
        /// What is there.
        what: &'static str,
    },
}

/// How a file ended.
#[derive(Debug, Default)]
pub struct End {
    /// Packets that were read.
    pub packets: u64,
    /// It ends in the middle of something; why.
    pub cut: Option<String>,
}

/// A clock of a pcapng interface.
#[derive(Clone, Copy)]
struct Interface {
    link: u32,
    /// Units in a second.
    resolution: NonZeroU64,
    /// Seconds to add.
    offset_s: i64,
}

impl Interface {
    fn time_ns(&self, units: u64) -> u64 {
        let resolution = self.resolution.get();
        let part = u128::from(units % resolution) * u128::from(NS_PER_S) / u128::from(resolution);
        let seconds = (units / resolution).saturating_add_signed(self.offset_s);
        seconds.saturating_mul(NS_PER_S).saturating_add(part as u64)
    }
}

/// Gives every packet of a file to `visit`, whose error ends it; `progress` is told of bytes of the file as they are read.
///
/// # Errors
/// See [`ReadError`].
pub fn packets<E: From<ReadError>>(
    path: &Path,
    progress: impl FnMut(u64) + Send,
    mut visit: impl FnMut(Packet<'_>) -> Result<(), E>,
) -> Result<End, E> {
    let file = File::open(path).map_err(ReadError::from)?;
    let mut file = BufReader::new(Counted { file, progress });
    let head = std::io::BufRead::fill_buf(&mut file).map_err(ReadError::from)?;
    let first: Vec<u8> = head.iter().take(4).copied().collect();
    let is_gzip = first.starts_with(&GZIP);
    let fault = Arc::new(Mutex::new(None));
    let whole: Box<dyn Read + Send + '_> = match is_gzip {
        true => Box::new(MultiGzDecoder::new(file)),
        false => Box::new(file),
    };
    let whole = Filled {
        inner: whole,
        is_over: false,
        fault: fault.clone(),
    };
    let mut reader = create_reader(BUFFER_BYTES, whole).map_err(|error| {
        let fault = take(&fault);
        ReadError::NotACapture(match (error, fault) {
            (_, Some(error)) => error.to_string(),
            (PcapError::Eof, _) => "empty".into(),
            (PcapError::Incomplete(_), _) => "shorter than a capture's header".into(),
            _ if is_gzip => "what gunzip makes of it is something else".into(),
            _ => format!("it begins with {}", hex(&first)),
        })
    })?;
    let mut state = State::default();
    let cut = loop {
        match reader.next() {
            Ok((len, block)) => {
                if let Some(packet) = state.packet(&block)? {
                    visit(packet)?;
                    state.packets += 1;
                }
                reader.consume(len);
            }
            Err(PcapError::Eof) => break None,
            Err(PcapError::UnexpectedEof) => break Some("in the middle of a packet"),
            Err(PcapError::Incomplete(_)) => refill(reader.as_mut(), state.packets)?,
            Err(PcapError::BufferTooSmall) => {
                let size = reader.data().len().max(BUFFER_BYTES) * 2;
                if size > MAX_BLOCK_BYTES || !reader.grow(size) {
                    // At the very end a torn length is a torn file all the same.
                    Err(state.broken("a block of more than 16 MiB"))?;
                }
                refill(reader.as_mut(), state.packets)?;
            }
            Err(_) => Err(state.broken("what follows is no block"))?,
        }
    };
    let fault = take(&fault).map(|error| error.to_string());
    Ok(End {
        packets: state.packets,
        cut: fault.or(cut.map(str::to_owned)),
    })
}

fn refill(reader: &mut dyn PcapReaderIterator, packets: u64) -> Result<(), ReadError> {
    let what = "it cannot be read on";
    let filled = reader.refill();
    filled.map_err(|_| ReadError::Broken { packets, what })
}

fn take(fault: &Fault) -> Option<io::Error> {
    fault.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn hex(bytes: &[u8]) -> String {
    let each: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    each.join(" ")
}

/// What the blocks so far have said.
#[derive(Default)]
struct State {
    packets: u64,
    interfaces: Vec<Option<Interface>>,
    /// Of a packet that has none of its own.
    last_ns: u64,
}

impl State {
    fn broken(&self, what: &'static str) -> ReadError {
        let packets = self.packets;
        ReadError::Broken { packets, what }
    }

    fn packet<'a>(
        &mut self,
        block: &'a PcapBlockOwned<'_>,
    ) -> Result<Option<Packet<'a>>, ReadError> {
        let (interface, units, bytes, wire) = match block {
            PcapBlockOwned::LegacyHeader(header) => {
                let per_s = if header.is_nanosecond_precision() {
                    NS_PER_S
                } else {
                    1_000_000
                };
                self.interfaces = vec![Some(Interface {
                    // The upper bits tell of a frame check sequence.
                    link: header.network.0 as u32 & 0xffff,
                    resolution: NonZeroU64::new(per_s).unwrap_or(NonZeroU64::MIN),
                    offset_s: 0,
                })];
                return Ok(None);
            }
            PcapBlockOwned::Legacy(block) => {
                let interface = self.interface(0)?;
                let per_s = interface.resolution.get();
                let units = u64::from(block.ts_sec) * per_s + u64::from(block.ts_usec);
                let bytes = block
                    .data
                    .get(..block.caplen as usize)
                    .unwrap_or(block.data);
                (interface, Some(units), bytes, block.origlen)
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                self.interfaces.clear();
                return Ok(None);
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(block)) => {
                let resolution = block.ts_resolution().and_then(NonZeroU64::new);
                self.interfaces.push(resolution.map(|resolution| Interface {
                    link: block.linktype.0 as u32 & 0xffff,
                    resolution,
                    offset_s: block.ts_offset(),
                }));
                return Ok(None);
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(block)) => {
                let units = u64::from(block.ts_high) << 32 | u64::from(block.ts_low);
                let interface = self.interface(block.if_id as usize)?;
                (interface, Some(units), block.packet_data(), block.origlen)
            }
            PcapBlockOwned::NG(Block::SimplePacket(block)) => {
                (self.interface(0)?, None, block.packet_data(), block.origlen)
            }
            PcapBlockOwned::NG(_) => return Ok(None),
        };
        let time_ns = units.map_or(self.last_ns, |units| interface.time_ns(units));
        self.last_ns = time_ns;
        Ok(Some(Packet {
            time_ns,
            link: interface.link,
            bytes,
            wire_bytes: bytes.len().max(wire as usize),
        }))
    }

    fn interface(&self, id: usize) -> Result<Interface, ReadError> {
        let known = self.interfaces.get(id).copied().flatten();
        known.ok_or_else(|| self.broken("a packet of an interface that is not described"))
    }
}

/// A file that says how much of it has been read.
struct Counted<P> {
    file: File,
    progress: P,
}

impl<P: FnMut(u64)> Read for Counted<P> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read(to)?;
        (self.progress)(len as u64);
        Ok(len)
    }
}

type Fault = Arc<Mutex<Option<io::Error>>>;

/// Fills whole buffers; an error is the end, and kept. So what came before it is not lost, as in a torn gzip file.
struct Filled<R> {
    inner: R,
    is_over: bool,
    fault: Fault,
}

impl<R: Read> Read for Filled<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let mut len = 0;
        while len < to.len() && !self.is_over {
            match self.inner.read(&mut to[len..]) {
                Ok(0) => self.is_over = true,
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_over = true;
                    let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
                    *fault = Some(error);
                }
            }
        }
        Ok(len)
    }
}
