//! The data of notifies.

use std::net::{IpAddr, SocketAddr};

use mobikex_common::wire::ike::{Notify, NotifyType};
use mobikex_common::wire::mobike_x;

use super::names;
use super::node::Node;

/// What the data of a notify says; nothing for none.
pub(super) fn data(notify: &Notify) -> Vec<Node> {
    if notify.data.is_empty() {
        return Vec::new();
    }
    known(notify).unwrap_or_else(|| vec![Node::octets("data", &notify.data)])
}

fn known(notify: &Notify) -> Option<Vec<Node>> {
    let data = &*notify.data;
    Some(match notify.kind {
        // Version 1 of MOBIKE has the bare address there, which no parameters of version 2 are as long as.
        NotifyType::ADDITIONAL_IP4_ADDRESS => vec![Node::new("address", address(data)?)],
        NotifyType::ADDITIONAL_IP6_ADDRESS if data.len() == 16 => vec![Node::new("address", address(data)?)],
        NotifyType::NO_NATS_ALLOWED => no_nats(data)?,
        NotifyType::INVALID_KE_PAYLOAD => {
            vec![Node::new("method", names::key_exchange(u16::from_be_bytes(data.try_into().ok()?)))]
        }
        NotifyType::SET_WINDOW_SIZE => {
            vec![Node::new("window", u32::from_be_bytes(data.try_into().ok()?))]
        }
        NotifyType::SIGNATURE_HASH_ALGORITHMS => {
            let (ids, rest) = data.as_chunks::<2>();
            let names: Vec<_> = ids.iter().map(|id| names::hash(u16::from_be_bytes(*id))).collect();
            if !rest.is_empty() {
                return None;
            }
            vec![Node::new("algorithms", names.join(" "))]
        }
        NotifyType::MOBIKE_SUPPORTED
        | NotifyType::MOBIKE_UNSUPPORTED_VERSION
        | NotifyType::ADDITIONAL_IP6_ADDRESS
        | NotifyType::UPDATE_SA_ADDRESSES
        | NotifyType::SELECTOR
        | NotifyType::END_OF_SELECTOR
        | NotifyType::ADD_SA_ADDRESS
        | NotifyType::REMOVE_SA_ADDRESS
        | NotifyType::CLOSING_SA
        | NotifyType::UNACCEPTABLE_ADDRESSES
        | NotifyType::DOES_NOT_FIT_SPD
        | NotifyType::UNACCEPTABLE_PARAMETER
        | NotifyType::UNEXPECTED_PAYLOAD_AFTER_SELECTOR
        | NotifyType::UNMATCHED_SELECTOR_SET => parameters(data),
        _ => return None,
    })
}

/// Parameters of MOBIKE-X. Most of these notifies have numbers of private use, so they may be something else.
fn parameters(data: &[u8]) -> Vec<Node> {
    match mobike_x::parse(data) {
        Ok(parameters) => parameters.iter().map(|p| Node::new("parameter", p)).collect(),
        Err(error) => vec![Node::new("no parameters of MOBIKE-X", error), Node::octets("data", data)],
    }
}

/// An address by its length.
pub(super) fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
    }
}

/// Source and destination (RFC 4555 4.2.6).
fn no_nats(data: &[u8]) -> Option<Vec<Node>> {
    let width = match data.len() {
        12 => 4,
        36 => 16,
        _ => return None,
    };
    let end = |at: usize| {
        let port = data.get(2 * width + 2 * at..)?.first_chunk()?;
        Some(SocketAddr::new(address(data.get(width * at..width * (at + 1))?)?, u16::from_be_bytes(*port)))
    };
    Some(vec![Node::new("source", end(0)?), Node::new("destination", end(1)?)])
}
