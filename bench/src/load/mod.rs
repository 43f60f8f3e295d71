//! Clients and listeners of `compare`, `flood` and `escalate`: plain sockets and threads, bounded in time.

mod blast;
mod flood;
mod hold;
mod ping;
mod probe;
mod query;
mod sink;

use std::{
    io::{Read as _, Write as _},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use crate::{
    asm, ctnetlink, entries,
    escalate::{Through, through},
    sys::{self, ProgramKind},
};
pub use flood::Kind as FloodKind;

/// TCP port of the listener.
pub const TCP: u16 = 9000;
/// Its UDP port.
pub const UDP: u16 = 9001;
/// Clients that connect at once.
const CLIENTS: usize = 4;
/// How long the listener waits for a client's wish.
const PATIENCE: Duration = Duration::from_secs(2);
/// Datagrams a call.
const BATCH: usize = 64;

/// What to do.
#[derive(Subcommand)]
pub enum Load {
    /// Listen until killed
    Serve {
        /// Address
        #[arg(long)]
        listen: IpAddr,
        /// Connections that are taken at once
        #[arg(long, default_value_t = 1)]
        workers: u32,
    },
    /// Connect, read one byte, close; as often as it goes
    Connect(Target),
    /// One byte there and back on one connection
    Trip(Target),
    /// Datagrams of 64 bytes as fast as they go; the listener says how many came
    Udp(Target),
    /// Send as much as goes over some connections; bytes in each interval
    Hold(hold::Options),
    /// New connections at a fixed rate; each with its result
    Probe(probe::Options),
    /// Spoofed packets at a fixed rate
    Flood(flood::Options),
    /// Be the far end of a wire: what goes to spoofed sources goes elsewhere; until killed
    Wire {
        /// Device
        #[arg(long)]
        device: String,
    },
    /// Datagrams of one flow, as fast as they go or at a fixed rate
    Blast(blast::Options),
    /// Count and drop datagrams as they arrive
    Sink(sink::Options),
    /// Send datagrams back until killed
    Echo(ping::Echo),
    /// Datagrams there and back
    Ping(ping::Options),
    /// Take packets, and let them go on; until killed
    #[command(subcommand)]
    Through(Through),
    /// Fill netfilter's table with connections of others
    Fill {
        /// The first
        #[arg(long)]
        from: u32,
        /// Behind the last
        #[arg(long)]
        to: u32,
    },
}

/// Where to, and for how long.
#[derive(Args)]
pub struct Target {
    /// Address
    #[arg(long)]
    to: IpAddr,
    /// How long
    #[arg(long)]
    seconds: u64,
}

/// Does it; a client prints one JSON object.
pub fn run(load: &Load) -> Result<()> {
    let answer = match load {
        Load::Serve { listen, workers } => return serve(*listen, *workers),
        Load::Connect(target) => connect(target)?,
        Load::Trip(target) => trip(target)?,
        Load::Udp(target) => udp(target)?,
        Load::Hold(options) => hold::run(options)?,
        Load::Probe(options) => probe::run(options)?,
        Load::Flood(options) => flood::run(options)?,
        Load::Wire { device } => return wire(device),
        Load::Blast(options) => blast::run(options)?,
        Load::Sink(options) => sink::run(options)?,
        Load::Echo(options) => return ping::echo(options),
        Load::Ping(options) => ping::run(options)?,
        Load::Through(what) => return through(what),
        Load::Fill { from, to } => {
            ctnetlink::insert_established(&others(*from..*to))?;
            serde_json::Value::Null
        }
    };
    println!("{answer}");
    Ok(())
}

fn wire(device: &str) -> Result<()> {
    let program = asm::wire_end().context("the wire's program")?;
    let _link = sys::attach(ProgramKind::Xdp, &program, sys::ifindex(device)?).context("attach")?;
    loop {
        thread::park();
    }
}

/// Tuples of connections that others have; none of a client here.
pub fn others(which: std::ops::Range<u32>) -> Vec<fsm_common::flow::FlowKey<[u8; 4]>> {
    which.map(|number| entries::tuple(number, 2)).collect()
}

/// The first byte that a client sends says what it wants: `c` nothing more, `t` an echo, `b` that what follows
/// is read and thrown away, `u` the count of datagrams so far.
fn serve(listen: IpAddr, workers: u32) -> Result<()> {
    static DATAGRAMS: AtomicU64 = AtomicU64::new(0);
    let socket = UdpSocket::bind((listen, UDP))?;
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while socket.recv(&mut buffer).is_ok() {
            DATAGRAMS.fetch_add(1, Ordering::Relaxed);
        }
    });
    let listener = TcpListener::bind((listen, TCP))?;
    // SAFETY: a valid socket; a longer queue than the library's 128.
    unsafe { libc::listen(listener.as_raw_fd(), 4096) };
    let accept = || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream, &DATAGRAMS);
        }
    };
    thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(accept);
        }
        accept();
    });
    Ok(())
}

fn answer(mut stream: TcpStream, datagrams: &'static AtomicU64) -> Result<()> {
    let mut wish = [0];
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut wish)?;
    stream.set_read_timeout(None)?;
    match wish[0] {
        b'b' => {
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 18];
                while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
            });
        }
        b't' => {
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
        b'u' => stream.write_all(&datagrams.load(Ordering::Relaxed).to_be_bytes())?,
        // Closing here first leaves TIME_WAIT to this side: the client never runs out of ports.
        _ => stream.write_all(&wish)?,
    }
    Ok(())
}

fn connect(target: &Target) -> Result<serde_json::Value> {
    let to = SocketAddr::new(target.to, TCP);
    let end = Instant::now() + Duration::from_secs(target.seconds);
    let (start, busy) = (Instant::now(), busy_us()?);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            thread::spawn(move || -> Result<u64> {
                let mut done = 0;
                let mut rest = Vec::new();
                while Instant::now() < end {
                    let mut stream = TcpStream::connect(to)?;
                    stream.write_all(b"c")?;
                    rest.clear();
                    stream.read_to_end(&mut rest)?;
                    anyhow::ensure!(rest == b"c", "another answer");
                    done += 1;
                }
                Ok(done)
            })
        })
        .collect();
    let mut done = 0;
    for client in clients {
        done += client
            .join()
            .map_err(|_| anyhow::anyhow!("a client has died"))??;
    }
    let elapsed = start.elapsed().as_secs_f64();
    let busy = busy_us()? - busy;
    Ok(serde_json::json!({ "per_second": done as f64 / elapsed, "cpu_us": busy / done as f64 }))
}

/// CPU time that the whole machine has spent, in microseconds: packets are handled in nobody's name.
fn busy_us() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let fields: Vec<f64> = stat
        .lines()
        .next()
        .context("/proc/stat")?
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    anyhow::ensure!(fields.len() >= 8, "/proc/stat");
    // user nice system irq softirq, in hundredths of a second; not idle, iowait and steal
    Ok((fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) * 10_000.0)
}

fn trip(target: &Target) -> Result<serde_json::Value> {
    let mut stream = TcpStream::connect((target.to, TCP))?;
    stream.set_nodelay(true)?;
    stream.write_all(b"t")?;
    let end = Instant::now() + Duration::from_secs(target.seconds);
    let mut trips = Vec::new();
    let mut byte = [b'x'];
    while Instant::now() < end {
        let start = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        trips.push(start.elapsed().as_nanos() as f64 / 1000.0);
    }
    trips.sort_by(f64::total_cmp);
    let at = |share: f64| trips[((trips.len() - 1) as f64 * share) as usize];
    Ok(serde_json::json!({ "p50_us": at(0.5), "p99_us": at(0.99), "trips": trips.len() }))
}

fn udp(target: &Target) -> Result<serde_json::Value> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect((target.to, UDP))?;
    let before = datagrams(target.to)?;
    let start = Instant::now();
    let end = start + Duration::from_secs(target.seconds);
    let payload = [b'x'; 64];
    let mut part = libc::iovec {
        iov_base: payload.as_ptr() as *mut _,
        iov_len: payload.len(),
    };
    let mut messages: Vec<libc::mmsghdr> = (0..BATCH)
        .map(|_| {
            // SAFETY: zero is a value of this struct of integers and pointers.
            let mut message: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
            message.msg_hdr.msg_iov = &raw mut part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let mut sent = 0u64;
    while Instant::now() < end {
        // SAFETY: the messages point to one part each, which lives through the call.
        let done =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, 0) };
        sent += u64::try_from(done).unwrap_or(0);
    }
    let elapsed = start.elapsed().as_secs_f64();
    thread::sleep(Duration::from_millis(100));
    let came = datagrams(target.to)? - before;
    Ok(
        serde_json::json!({ "per_second": came as f64 / elapsed, "sent_per_second": sent as f64 / elapsed }),
    )
}

fn datagrams(to: IpAddr) -> Result<u64> {
    let mut stream = TcpStream::connect((to, TCP))?;
    stream.write_all(b"u")?;
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    Ok(u64::from_be_bytes(count))
}
