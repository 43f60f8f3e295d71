//! The file of records. The daemon's loop hands events over and goes on; a thread writes them. Where the thread cannot
//! follow, events are lost and counted, and the loop never waits.
//!
//! The file is opened anew when that is asked for (a reload, after logrotate has renamed it), and made anew when it has
//! gone from its path, within a second.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use tracing::{info, warn};

use super::Records;
use crate::dpi::Event;

/// Events that wait to be written, some 200 bytes each.
const QUEUE: usize = 16_384;
/// How often the path is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the daemon's end waits for what is queued.
const PATIENCE: Duration = Duration::from_secs(2);

enum Item {
    /// At a time since 1970; what to add to the event's own times.
    Event(u64, u64, Event),
    Stats(u64, Value),
}

/// The file, and the thread that writes it.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    queue: Option<SyncSender<Item>>,
    shared: Arc<Shared>,
    ended: Receiver<()>,
}

#[derive(Debug, Default)]
struct Shared {
    reopen: AtomicBool,
    written: AtomicU64,
    lost: AtomicU64,
}

impl Log {
    /// Opens the file and starts the thread.
    ///
    /// # Errors
    /// The file cannot be opened, or there is no thread to be had.
    pub fn open(path: &Path, host: &str) -> io::Result<Self> {
        let file = open(path)?;
        let (queue, items) = mpsc::sync_channel(QUEUE);
        let (end, ended) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            path: path.to_owned(),
            file: BufWriter::new(file),
            records: Records { host: host.into() },
            shared: shared.clone(),
            is_failing: false,
        };
        std::thread::Builder::new()
            .name("fsm-eve".into())
            .spawn(move || {
                writer.run(&items);
                let _ = end.send(());
            })?;
        Ok(Self {
            path: path.to_owned(),
            queue: Some(queue),
            shared,
            ended,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has an event written, whose own times are `monotonic_ns` ago at most: the clock that it was told by, now.
    pub fn event(&self, monotonic_ns: u64, event: Event) {
        let now_ns = now_ns();
        self.queue(Item::Event(
            now_ns,
            now_ns.saturating_sub(monotonic_ns),
            event,
        ));
    }

    /// Has counters written.
    pub fn stats(&self, stats: Value) {
        self.queue(Item::Stats(now_ns(), stats));
    }

    /// Has the file opened anew: the one at its path may be another by now.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
    }

    /// Records written.
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }

    /// Records lost: there was no room for them, or they could not be written.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    fn queue(&self, item: Item) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(item).is_err() {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Log {
    /// What is queued is written, if that does not take long.
    fn drop(&mut self) {
        self.queue = None;
        let _ = self.ended.recv_timeout(PATIENCE);
    }
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640);
    // A pipe that nobody reads is an error, and never a wait.
    options.custom_flags(libc::O_NONBLOCK);
    options.open(path)
}

struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    records: Records,
    shared: Arc<Shared>,
    /// The last try failed, and that was said.
    is_failing: bool,
}

impl Writer {
    fn run(mut self, items: &Receiver<Item>) {
        let mut looked = Instant::now();
        let mut unflushed = 0;
        loop {
            if looked.elapsed() >= LOOK_EVERY || self.shared.reopen.load(Ordering::Acquire) {
                looked = Instant::now();
                self.look();
            }
            let item = match items.try_recv() {
                Ok(item) => Ok(item),
                Err(_) => {
                    self.flush(&mut unflushed);
                    items.recv_timeout(LOOK_EVERY / 4)
                }
            };
            match item {
                Ok(item) => {
                    unflushed += 1;
                    self.write(item, &mut unflushed);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
    }

    fn write(&mut self, item: Item, unflushed: &mut u64) {
        let record = match item {
            Item::Event(time_ns, epoch_ns, event) => self.records.record(time_ns, epoch_ns, &event),
            Item::Stats(time_ns, stats) => self.records.stats(time_ns, stats),
        };
        if let Err(error) = writeln!(self.file, "{record}") {
            self.failed(&error, unflushed);
        }
    }

    /// Puts what is buffered into the file; the records are counted as written, or lost.
    fn flush(&mut self, unflushed: &mut u64) {
        match self.file.flush() {
            Ok(()) => {
                self.is_failing &= *unflushed == 0;
                self.shared.written.fetch_add(*unflushed, Ordering::Relaxed);
                *unflushed = 0;
            }
            Err(error) => self.failed(&error, unflushed),
        }
    }

    fn failed(&mut self, error: &io::Error, unflushed: &mut u64) {
        self.shared.lost.fetch_add(*unflushed, Ordering::Relaxed);
        *unflushed = 0;
        self.say(&format!("records are lost: {error}"));
        // What could not be written is not tried again: half a line may be there already.
        if let Ok(file) = open(&self.path) {
            let (_, _) = std::mem::replace(&mut self.file, BufWriter::new(file)).into_parts();
            let _ = self.file.write_all(b"\n");
        }
    }

    /// Opens the file again where that was asked for, or where another or none is at its path.
    fn look(&mut self) {
        let is_asked = self.shared.reopen.swap(false, Ordering::AcqRel);
        let number = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let ours = self.file.get_ref().metadata().map(number).ok();
        let there = std::fs::metadata(&self.path).map(number).ok();
        if !is_asked && ours == there {
            return;
        }
        match open(&self.path) {
            Ok(file) => {
                let _ = self.file.flush();
                self.file = BufWriter::new(file);
                if ours != there {
                    info!(file = %self.path.display(), "event log: a new file");
                }
                self.is_failing = false;
            }
            Err(error) => self.say(&format!(
                "it cannot be opened anew, the old one goes on: {error}"
            )),
        }
    }

    /// Warns, once until it works again.
    fn say(&mut self, what: &str) {
        if !std::mem::replace(&mut self.is_failing, true) {
            warn!(file = %self.path.display(), "event log: {what}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn event() -> Event {
        let addr = "10.0.0.1:1".parse().unwrap();
        Event::Threat {
            from: addr,
            to: addr,
            proto: 6,
            name: "bad_checksum",
        }
    }

    fn lines(path: &Path) -> usize {
        let text = fs::read_to_string(path).unwrap_or_default();
        let records = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.collect::<Vec<_>>().len()
    }

    #[test]
    fn a_renamed_file_is_followed_by_a_new_one_and_no_record_is_lost() {
        let dir = std::env::temp_dir().join(format!("fsm-eve-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let [path, old] = ["eve.json", "eve.json.1"].map(|name| dir.join(name));
        let log = Log::open(&path, "n1").unwrap();
        for _ in 0..100 {
            log.event(0, event());
        }
        let begin = Instant::now();
        while log.written() < 100 {
            assert!(begin.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::rename(&path, &old).unwrap();
        log.reopen();
        while !path.exists() {
            assert!(begin.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(5));
        }
        log.event(0, event());
        assert_eq!(log.lost(), 0);
        drop(log);
        assert_eq!((lines(&old), lines(&path)), (100, 1));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_nobody_waits() {
        let log = Log::open(Path::new("/dev/full"), "n1").unwrap();
        for _ in 0..100 {
            log.event(0, event());
        }
        let begin = Instant::now();
        while log.lost() < 100 {
            assert!(begin.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(log.written(), 0);
    }
}
