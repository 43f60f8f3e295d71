//! The inspection engine over captures: files in, rows and records out. No privileges, no daemon, nothing of the
//! kernel's; time is that of the captures.
//!
//! [`read`] opens files, [`link`] makes frames of what is in them, [`flows`] joins what the engine tells.

pub mod flows;
pub mod link;
pub mod read;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::dpi::{Engine as _, Event, Inspector, Meta, Policies, Settings};

use flows::Flows;
use link::{Checksums, Framer, UnknownLink};
use read::{Packet, ReadError};

/// How often the engine ends what is over, in a capture's time.
const TICK_NS: u64 = 1_000_000_000;
/// Makes the hash of sessions. A capture is no adversary that watches: the same file gives the same output.
const SEED: u64 = 0x5eed;

const META: Meta = Meta {
    ifindex: 0,
    is_ingress: true,
    is_reply: false,
    is_copy: true,
    policy: 0,
};

/// Why a capture was not, or not wholly, read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Packets of a link type that nobody understands.
    #[error(
        "{packets} packets of link type {link} are not understood; understood are {}",
        link::SUPPORTED
    )]
    Link {
        /// Its number.
        link: u32,
        /// How many.
        packets: u64,
    },
    /// What came out could not be written.
    #[error("the output cannot be written: {0}")]
    Output(#[from] io::Error),
}

/// Where results go.
pub trait Sink {
    /// Something was told, at a capture's time. In a flow's end it is that of its last packet.
    ///
    /// # Errors
    /// It cannot be written; nothing more is read then.
    fn event(&mut self, time_ns: u64, event: &Event) -> io::Result<()>;

    /// A flow has ended.
    ///
    /// # Errors
    /// The same.
    fn flow(&mut self, row: &flows::FlowRow) -> io::Result<()>;

    /// So many bytes of a file have been read.
    fn progress(&self) -> Box<dyn FnMut(u64) + Send>;
}

/// What is worth knowing of a whole capture.
#[derive(Debug, Default)]
pub struct Summary {
    /// Packets.
    pub packets: u64,
    /// Those that are no IP packets the engine can read.
    pub undecoded: u64,
    /// Packets whose session had no room, and sessions that gave way: neither is in any row.
    pub no_room: u64,
    /// It ends in the middle of something; why.
    pub cut: Option<String>,
}

/// Runs captures, one after the other, each with an engine of its own: what is seen in one does not depend on others.
pub struct Runner {
    settings: Settings,
    policies: Arc<Policies>,
    checksums: Checksums,
    /// What all of them have held.
    pub flows: Flows,
}

impl Runner {
    /// With these settings and policies.
    pub fn new(settings: Settings, policies: Arc<Policies>, checksums: Checksums) -> Self {
        Self {
            settings,
            policies,
            checksums,
            flows: Flows::default(),
        }
    }

    /// Runs one file. What was read before an error has been given to `sink`.
    ///
    /// # Errors
    /// See [`CaptureError`].
    pub fn run(&mut self, path: &Path, sink: &mut dyn Sink) -> Result<Summary, CaptureError> {
        let mut engine = Inspector::new(self.settings, self.policies.clone(), SEED);
        let mut framer = Framer::new(self.checksums);
        let mut unknown = BTreeMap::<u32, u64>::new();
        let mut next_tick_ns = 0;
        let mut told = Vec::new();
        let mut last_ns = 0;
        let progress = sink.progress();
        let flows = &mut self.flows;
        let read = read::packets(path, progress, |packet: Packet<'_>| {
            let Packet {
                time_ns,
                link,
                bytes,
                wire_bytes,
            } = packet;
            last_ns = time_ns;
            if time_ns >= next_tick_ns {
                engine.tick(time_ns, &mut |event| told.push(event));
                next_tick_ns = time_ns.saturating_add(TICK_NS);
            }
            match framer.frame(link, bytes, bytes.len() < wire_bytes) {
                Ok(frame) => {
                    engine.judge(time_ns, &META, frame, &mut |event| told.push(event));
                }
                Err(UnknownLink(link)) => *unknown.entry(link).or_default() += 1,
            }
            give(flows, sink, time_ns, &mut told)
        });
        if let Err(error @ CaptureError::Output(_)) = read {
            return Err(error);
        }
        engine.finish(&mut |event| told.push(event));
        give(flows, sink, last_ns, &mut told)?;
        for row in flows.rest() {
            sink.flow(&row)?;
        }
        let end = read?;
        if let Some((link, packets)) = unknown.pop_first() {
            return Err(CaptureError::Link { link, packets });
        }
        let stats = engine.stats();
        Ok(Summary {
            packets: end.packets,
            undecoded: stats.undecoded,
            no_room: stats.no_room + stats.evicted,
            cut: end.cut,
        })
    }
}

fn give(
    flows: &mut Flows,
    sink: &mut dyn Sink,
    time_ns: u64,
    told: &mut Vec<Event>,
) -> Result<(), CaptureError> {
    for event in told.drain(..) {
        let time_ns = match &event {
            Event::Flow { span_ns, .. } => span_ns[1],
            _ => time_ns,
        };
        sink.event(time_ns, &event)?;
        if let Some(row) = flows.note(event) {
            sink.flow(&row)?;
        }
    }
    Ok(())
}

/// The files that are meant: folders with all that is in them, by name; what begins with a dot is left out.
///
/// # Errors
/// A folder cannot be read, a file is not there: with its name.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let kind = fs::metadata(path).map_err(|error| failed(path, error))?;
    if !kind.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries = fs::read_dir(path)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(|error| failed(path, error))?;
    entries.retain(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.path();
        // Links to folders are not followed: they may lead back.
        match entry.file_type().map_err(|error| failed(&path, error))? {
            kind if kind.is_dir() => found.extend(files(&path)?),
            _ if path.is_file() => found.push(path),
            _ => {}
        }
    }
    Ok(found)
}
