//! One datagram at a time there and back, with a rest in between or without.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::query;
use crate::machine::pin;

/// UDP port of the echo.
const PORT: u16 = 9002;
/// Trips that are not counted.
const FIRST: u32 = 20;
/// After that a datagram is lost.
const PATIENCE: Duration = Duration::from_millis(500);

/// Arguments of the far end.
#[derive(Args)]
pub struct Echo {
    /// Address
    #[arg(long)]
    listen: IpAddr,
    /// CPU to stay on
    #[arg(long)]
    cpu: usize,
}

/// Arguments.
#[derive(Args)]
pub struct Options {
    /// Address
    #[arg(long)]
    to: IpAddr,
    /// Bytes in each
    #[arg(long)]
    payload: usize,
    /// CPU to stay on
    #[arg(long)]
    cpu: usize,
    /// Trips
    #[arg(long)]
    count: u32,
    /// Rest between two, microseconds
    #[arg(long)]
    rest_us: u64,
}

/// Until killed.
pub fn echo(options: &Echo) -> Result<()> {
    pin(options.cpu)?;
    let socket = UdpSocket::bind((options.listen, PORT))?;
    let mut buffer = [0; 2048];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..len], from)?;
    }
}

/// Says how long trips took.
pub fn run(options: &Options) -> Result<Value> {
    pin(options.cpu)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((options.to, PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (mut trips, mut lost) = (Vec::new(), 0u32);
    let mut answer = [0; 2048];
    for number in 0..options.count + FIRST {
        let payload = query::query(number as u16, options.payload);
        let start = Instant::now();
        socket.send(&payload)?;
        match socket.recv(&mut answer) {
            Ok(len) => {
                let took = start.elapsed();
                ensure!(
                    answer[..len] == payload,
                    "datagram {number} came back as another"
                );
                if number >= FIRST {
                    trips.push(took.as_nanos() as f64 / 1000.0);
                }
            }
            Err(_) => lost += 1,
        }
        ensure!(lost < 10, "{lost} of {number} datagrams lost");
        if options.rest_us > 0 {
            sleep(Duration::from_micros(options.rest_us));
        }
    }
    trips.sort_by(f64::total_cmp);
    let at = |share: f64| trips[((trips.len() - 1) as f64 * share) as usize];
    Ok(json!({ "p50_us": at(0.5), "p99_us": at(0.99), "trips": trips.len(), "lost": lost }))
}
