//! Fills this namespace's netfilter conntrack with translated TCP connections, by ctnetlink
//! (`linux/netfilter/nfnetlink_conntrack.h`): what `conntrack -I --dst-nat` does, many in one message.

use anyhow::Result;
use fsm_common::flow::FlowKey;

use crate::{
    nfnetlink::{ACK, REQUEST, attribute, nest, open, put, refused, send},
    world::GATEWAY,
};

/// NFNL_SUBSYS_CTNETLINK << 8, with IPCTNL_MSG_CT_NEW and IPCTNL_MSG_CT_DELETE.
const NEW: u16 = 1 << 8;
const DELETE: u16 = 1 << 8 | 2;
/// NLM_F_EXCL, NLM_F_CREATE.
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;
/// Connections in one message to the kernel.
const BATCH: usize = 64;
/// IPS_SEEN_REPLY, IPS_ASSURED and IPS_CONFIRMED.
const STATUS: u32 = 2 | 4 | 8;
/// TCP_CONNTRACK_ESTABLISHED.
const ESTABLISHED: u8 = 3;
/// Its timeout, netfilter's default.
const TIMEOUT_S: u32 = 432_000;

/// Established connections with these tuples, translated to `to`.
pub fn insert(keys: &[FlowKey<[u8; 4]>], to: ([u8; 4], u16)) -> Result<()> {
    let socket = open()?;
    for batch in keys.chunks(BATCH) {
        let mut message = Vec::new();
        for key in batch {
            put(&mut message, NEW, REQUEST | CREATE | EXCLUSIVE, 0, |body| {
                connection(body, key, to);
            });
        }
        send(&socket, &message)?;
        refused(&socket)?;
    }
    Ok(())
}

/// The same, to the gateway.
pub fn insert_established(keys: &[FlowKey<[u8; 4]>]) -> Result<()> {
    insert(keys, GATEWAY)
}

/// Forgets all connections.
pub fn flush() -> Result<()> {
    let socket = open()?;
    let mut message = Vec::new();
    put(&mut message, DELETE, REQUEST | ACK, 0, |_| {});
    send(&socket, &message)?;
    refused(&socket)
}

fn connection(body: &mut Vec<u8>, key: &FlowKey<[u8; 4]>, to: ([u8; 4], u16)) {
    tuple(body, 1, key);
    tuple(body, 2, &key.reversed());
    attribute(body, 3, &STATUS.to_be_bytes());
    nest(body, 4, |info| {
        nest(info, 1, |tcp| attribute(tcp, 1, &[ESTABLISHED]));
    });
    attribute(body, 7, &TIMEOUT_S.to_be_bytes());
    nest(body, 13, |nat| {
        attribute(nat, 1, &to.0);
        attribute(nat, 2, &to.0);
        nest(nat, 3, |ports| {
            attribute(ports, 1, &to.1.to_be_bytes());
            attribute(ports, 2, &to.1.to_be_bytes());
        });
    });
}

fn tuple(body: &mut Vec<u8>, kind: u16, key: &FlowKey<[u8; 4]>) {
    nest(body, kind, |tuple| {
        nest(tuple, 1, |ip| {
            attribute(ip, 1, &key.saddr);
            attribute(ip, 2, &key.daddr);
        });
        nest(tuple, 2, |proto| {
            attribute(proto, 1, &[key.proto]);
            attribute(proto, 2, &key.sport);
            attribute(proto, 3, &key.dport);
        });
    });
}
