//! Addresses, networks and sockets as users write them.
//!
//! Stricter than the standard library's parsers, because a near miss in an
//! address is a rule that silently matches nothing: no host bits behind a
//! prefix, no IPv4 in IPv6, no port 0; and the messages say which part is wrong.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::report::{ValueError, quoted};
use super::values::port_text;

/// An IP address.
pub fn address(text: &str) -> Result<IpAddr, ValueError> {
    let allowed = "an IPv4 or IPv6 address";
    let not_one = || ValueError::new(format!("{} is not an address", quoted(text)), allowed);
    let addr = text.parse::<IpAddr>().map_err(|_| not_one())?;
    match addr {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => {
                let what = format!("{} is IPv4 in IPv6 clothes", quoted(text));
                Err(ValueError::new(what, allowed).or_rather(v4.to_string()))
            }
            None => Ok(addr),
        },
        IpAddr::V4(_) => Ok(addr),
    }
}

/// An address (a network of one) or a CIDR without host bits.
pub fn network(text: &str) -> Result<IpNet, ValueError> {
    let allowed = "an address, or a network as 10.0.0.0/24 or fd00::/64";
    let Some((addr, prefix)) = text.split_once('/') else {
        let addr = address(text).map_err(|error| ValueError {
            allowed: allowed.to_owned(),
            ..error
        })?;
        return Ok(IpNet::from(addr));
    };
    let addr = address(addr).map_err(|error| ValueError::new(error.what, allowed))?;
    let longest = IpNet::from(addr).max_prefix_len();
    let digits = prefix.bytes().all(|b| b.is_ascii_digit());
    let length = prefix.parse::<u8>().ok().filter(|_| digits);
    let net = length.and_then(|length| IpNet::new(addr, length).ok());
    let net = net.ok_or_else(|| {
        let what = format!("prefix length {} cannot be", quoted(prefix));
        ValueError::new(what, format!("/0 to /{longest}"))
    })?;
    if net.trunc() != net {
        let what = format!("{} has bits set behind its prefix", quoted(text));
        let network = net.trunc().to_string();
        return Err(ValueError::new(
            what,
            format!("the network {network}, or the address {addr}"),
        )
        .or_rather(network));
    }
    Ok(net)
}

/// `addr:port` or `[v6]:port`; the port cannot be 0.
pub fn socket(text: &str) -> Result<SocketAddr, ValueError> {
    let allowed = "ADDRESS:PORT or [IPV6]:PORT";
    let allow = |error: ValueError| ValueError {
        allowed: allowed.to_owned(),
        ..error
    };
    let bracketed = text
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("]:"));
    let Some((addr, port)) = bracketed.or_else(|| text.rsplit_once(':')) else {
        let what = format!("{} has no port", quoted(text));
        return Err(ValueError::new(what, allowed));
    };
    if bracketed.is_none() && addr.contains(':') {
        let what = format!("{} has an IPv6 address without brackets", quoted(text));
        return Err(match addr.parse::<IpAddr>() {
            Ok(addr) => ValueError::new(what, allowed).or_rather(format!("[{addr}]:{port}")),
            Err(_) => ValueError::new(what, allowed),
        });
    }
    let addr = address(addr).map_err(allow)?;
    if bracketed.is_some() && addr.is_ipv4() {
        let what = format!("{} has an IPv4 address in brackets", quoted(text));
        return Err(ValueError::new(what, allowed).or_rather(format!("{addr}:{port}")));
    }
    Ok(SocketAddr::new(addr, port_text(port)?))
}

/// A socket address that packets can be sent to.
pub fn listener(text: &str) -> Result<SocketAddr, ValueError> {
    let allowed = "ADDRESS:PORT or [IPV6]:PORT of one host";
    let socket = socket(text).map_err(|error| match error.allowed.starts_with("ADDRESS") {
        true => ValueError {
            allowed: allowed.to_owned(),
            ..error
        },
        false => error,
    })?;
    let addr = socket.ip();
    let broadcast = addr == IpAddr::from([255; 4]);
    match addr.is_unspecified() || addr.is_multicast() || broadcast {
        true => {
            let what = format!("{} is not a unicast address", quoted(&addr.to_string()));
            Err(ValueError::new(what, allowed))
        }
        false => Ok(socket),
    }
}
