//! MOBIKE-X: the actions of version 2, asked for and answered.
//!
//! An incoming message goes from notifies to actions (`selector`), is judged on copies of the SAs (`decide`), and only
//! then applied, so that each SA changes once for all actions of a message.

mod ask;
pub(super) mod decide;
#[cfg(test)]
mod negotiation_tests;
mod obey;
pub(super) mod selector;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use mobikex_common::sa::ChildSaId;

use self::decide::decide;

/// What we ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    /// Use this address of ours too; `None` for the one that the request comes from.
    Add(Option<IpAddr>),
    Remove(IpAddr),
    /// Know of it, in the place of all that was told so before.
    Additional(IpAddr),
    /// Replace `old` (`None`: all) by `new` (`None`: the one that the request comes from).
    Update {
        old: Option<IpAddr>,
        new: Option<IpAddr>,
    },
}

/// Which SAs a wish is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    /// This IKE SA and its Child SAs.
    All,
    /// This IKE SA alone.
    IkeAlone,
    /// One Child SA.
    Child(ChildSaId),
}

/// One action that we send, with what is needed to make sense of the answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) wish: Wish,
    pub(super) scope: Scope,
    /// Inner addresses rather than outer ones.
    pub(super) inner: bool,
    pub(super) check: bool,
    /// An operator waits for the verdict.
    pub(super) by_hand: bool,
}

/// The address actions of one message that is under way.
pub(super) struct Actions {
    requests: Vec<Request>,
    /// Where the request was sent from: the implicit address.
    source: SocketAddr,
}
