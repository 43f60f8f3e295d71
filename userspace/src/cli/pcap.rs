//! `pcap`: the inspection engine over captures. Rows go out as flows end, so what is kept does not grow with the files.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::out::table;
use super::{Failure, Format, Global};
use crate::config::DpiMode;
use crate::dpi::{Event, Policies, Settings};
use crate::eve::Records;
use crate::pcap::flows::{FlowRow, Flows};
use crate::pcap::link::Checksums;
use crate::pcap::{CaptureError, Runner, Sink, Summary, files};
use crate::view::Row;

/// Rows that wait to be written together: a terminal's bar is drawn anew around each such piece.
const PIECE_BYTES: usize = 64 << 10;
const PIECE_TIME: Duration = Duration::from_millis(100);
/// A share of packets with wrong checksums, one in so many, that no wire makes.
const MANY_DAMAGED: u64 = 10;
/// Widths of the table's columns; what is longer pushes the rest of its row.
const WIDTHS: [usize; 8] = [6, 23, 23, 9, 9, 10, 16, 8];
/// Without a configuration: that of an empty `[dpi]`, in mode monitor.
const DEFAULTS: Settings = Settings {
    mode: DpiMode::Monitor,
    max_sessions: 1_000_000,
    stream_depth: 1 << 20,
};

/// Arguments of `pcap`.
#[derive(Debug, Args)]
pub struct Pcap {
    /// Captures: pcap or pcapng, also gzip'd; folders with all that is in them
    #[arg(required = true, value_name = "FILE_OR_DIR")]
    paths: Vec<PathBuf>,
    /// Write records to this file too, as events.eve does
    #[arg(long, value_name = "FILE")]
    eve: Option<PathBuf>,
    /// Inspect packets with wrong checksums too: for captures taken where a card was to make them
    #[arg(long)]
    no_checksums: bool,
}

pub fn run(global: &Global, args: &Pcap) -> Result<(), Failure> {
    let (settings, policies, host) = settings(global)?;
    let checksums = match args.no_checksums {
        true => Checksums::None,
        false => Checksums::Finished,
    };
    let mut runner = Runner::new(settings, policies, checksums);
    let mut has_failed = false;
    let mut captures = Vec::new();
    for path in &args.paths {
        let found = files(path).and_then(|found| match found.is_empty() {
            true => Err(format!("{}: no files in this folder", path.display())),
            false => Ok(found),
        });
        match found {
            Ok(found) => captures.extend(found),
            Err(error) => {
                eprintln!("error: {error}");
                has_failed = true;
            }
        }
    }
    let mut screen = Screen::new(global.output, &captures);
    if let Some(path) = &args.eve {
        screen.log(path, host)?;
    }
    let mut packets = 0;
    for path in &captures {
        match runner.run(path, &mut screen) {
            Ok(summary) => {
                packets += summary.packets;
                screen.remark(path, &summary)?;
            }
            Err(CaptureError::Output(error)) => return Err(error.into()),
            Err(error) => {
                screen.say(&format!("error: {}: {error}", path.display()))?;
                has_failed = true;
            }
        }
    }
    let damaged = runner.flows.threats.get("bad_checksum");
    let damaged = damaged.map_or(0, |(count, _, _)| *count);
    if damaged > packets / MANY_DAMAGED {
        screen.say(&format!(
            "warning: {damaged} packets have wrong checksums and were not inspected; if their sender left them to its \
             card, --no-checksums has them inspected"
        ))?;
    }
    screen.end(&runner.flows)?;
    match has_failed {
        true => Err(Failure::Said(String::new())),
        false => Ok(()),
    }
}

/// Those of the file that was named, else the defaults; nothing of this host.
fn settings(global: &Global) -> Result<(Settings, Arc<Policies>, String), Failure> {
    if global.config.is_none() {
        return Ok((DEFAULTS, Arc::default(), String::new()));
    }
    let config = global.config()?;
    let dpi = &config.dpi;
    let mode = match dpi.mode {
        DpiMode::Off => DpiMode::Monitor,
        mode => mode,
    };
    let policies = Policies::compile(dpi)
        .map_err(|what| Failure::Said(format!("{}: {what}", config.file().display())))?;
    let settings = Settings {
        mode,
        max_sessions: dpi.max_sessions as usize,
        stream_depth: dpi.stream_depth.0,
    };
    Ok((settings, Arc::new(policies), config.node.name.clone()))
}

/// Stdout, the bar on stderr, and the file of records.
struct Screen {
    format: Format,
    rows: Vec<u8>,
    written: Instant,
    has_head: bool,
    bar: Option<ProgressBar>,
    records: Records,
    eve: Option<BufWriter<File>>,
}

impl Screen {
    fn new(format: Format, captures: &[PathBuf]) -> Self {
        let bytes = captures.iter().filter_map(|path| path.metadata().ok());
        let bytes = bytes.map(|meta| meta.len()).sum();
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(bytes);
            let style =
                "{bar:30} {percent:>3} %  {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar
        });
        Self {
            format,
            rows: Vec::with_capacity(PIECE_BYTES * 2),
            written: Instant::now(),
            has_head: false,
            bar,
            records: Records::default(),
            eve: None,
        }
    }

    fn log(&mut self, path: &Path, host: String) -> Result<(), Failure> {
        let file = File::create(path)
            .map_err(|error| Failure::Said(format!("{}: {error}", path.display())))?;
        self.records.host = host;
        self.eve = Some(BufWriter::new(file));
        Ok(())
    }

    /// A line on stderr, after the rows so far.
    fn say(&mut self, line: &str) -> io::Result<()> {
        self.flush()?;
        self.beside(|| {
            eprintln!("{line}");
            Ok(())
        })
    }

    /// What is to be known of a capture that was read.
    fn remark(&mut self, path: &Path, summary: &Summary) -> io::Result<()> {
        let path = path.display();
        if let Some(cut) = &summary.cut {
            let packets = summary.packets;
            self.say(&format!(
                "warning: {path}: cut short after {packets} packets: {cut}"
            ))?;
        }
        if summary.no_room > 0 {
            let count = summary.no_room;
            self.say(&format!(
                "warning: {path}: more flows at once than dpi.max_sessions: {count} packets or flows are in no row"
            ))?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.written = Instant::now();
        let rows = std::mem::take(&mut self.rows);
        let result = self.beside(|| {
            let mut to = io::stdout().lock();
            to.write_all(&rows)?;
            to.flush()
        });
        self.rows = rows;
        self.rows.clear();
        result
    }

    /// Does something with the terminal while the bar is away.
    fn beside(&self, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Rows that are left, and the sums.
    fn end(mut self, flows: &Flows) -> io::Result<()> {
        if self.format == Format::Table {
            let text = sums(flows);
            self.rows.extend_from_slice(text.as_bytes());
        }
        self.flush()?;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.eve.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Sink for Screen {
    fn event(&mut self, time_ns: u64, event: &Event) -> io::Result<()> {
        match &mut self.eve {
            Some(eve) => writeln!(eve, "{}", self.records.record(time_ns, 0, event)),
            None => Ok(()),
        }
    }

    fn flow(&mut self, row: &FlowRow) -> io::Result<()> {
        match self.format {
            Format::Json => {
                serde_json::to_writer(&mut self.rows, row)?;
                self.rows.push(b'\n');
            }
            Format::Table => {
                if !std::mem::replace(&mut self.has_head, true) {
                    self.rows.extend(line(FlowRow::HEAD).into_bytes());
                }
                self.rows.extend(line(&row.cells()).into_bytes());
            }
        }
        let is_due = self.rows.len() >= PIECE_BYTES || self.written.elapsed() >= PIECE_TIME;
        if is_due { self.flush() } else { Ok(()) }
    }

    fn progress(&self) -> Box<dyn FnMut(u64) + Send> {
        match self.bar.clone() {
            Some(bar) => Box::new(move |bytes| bar.inc(bytes)),
            None => Box::new(|_| ()),
        }
    }
}

/// A row of the table: it is written before the next one is known, so widths are fixed.
fn line<T: AsRef<str>>(cells: &[T]) -> String {
    let mut line = String::new();
    for (at, cell) in cells.iter().enumerate() {
        let width = WIDTHS.get(at).copied().unwrap_or(0);
        line += &format!("{:width$}  ", cell.as_ref());
    }
    let mut line = line.trim_end().to_owned();
    line.push('\n');
    line
}

/// What all captures have held.
fn sums(flows: &Flows) -> String {
    let mut text = String::new();
    let mut apps: Vec<_> = flows.apps.iter().collect();
    apps.sort_by_key(|(app, sum)| (std::cmp::Reverse(sum.flows), **app));
    if !apps.is_empty() {
        let rows = apps.into_iter().map(|(app, sum)| {
            let app = app.unwrap_or("unknown").to_owned();
            vec![
                app,
                sum.flows.to_string(),
                sum.packets.to_string(),
                sum.bytes.to_string(),
            ]
        });
        text += &format!(
            "\n{}\n",
            table(&["APP", "FLOWS", "PACKETS", "BYTES"], rows.collect())
        );
    }
    if !flows.threats.is_empty() {
        let rows = flows.threats.iter().map(|(name, (count, from, to))| {
            vec![
                (*name).to_owned(),
                count.to_string(),
                from.to_string(),
                to.to_string(),
            ]
        });
        text += &format!(
            "\n{}\n",
            table(&["THREAT", "COUNT", "LAST FROM", "LAST TO"], rows.collect())
        );
    }
    text
}
