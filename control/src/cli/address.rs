//! `mobikex address`: actions on addresses by hand.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Failure, client};
use crate::protocol::{AddressVerb, Request, Target};

/// How long the peer has for its verdict.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Subcommand, Debug)]
pub(super) enum AddressCommand {
    /// Let the SAs use an address of ours beside the others.
    Add(AddressArgs),
    /// Let the SAs use an address of ours no more; without its last address an SA is closed.
    Remove(AddressArgs),
    /// Let the SAs use an address of ours instead of another, or of all others.
    Update(AddressArgs),
    /// Tell the peer where else we may be found; it takes the place of all that it was told of so before.
    Additional(AddressArgs),
    /// Ask the peer whether it would do so; nothing changes.
    Check {
        /// What it would be.
        #[arg(value_enum)]
        action: AddressVerb,
        #[command(flatten)]
        args: AddressArgs,
    },
}

#[derive(Args, Debug)]
pub(super) struct AddressArgs {
    /// NAME, or NAME/CHILD for the SAs of one child only.
    name: Target,
    /// The address; for an update, the new one.
    addr: IpAddr,
    /// For an update: the address to be replaced (default: all).
    #[arg(long, value_name = "ADDRESS")]
    old: Option<IpAddr>,
    /// An address inside the tunnel of a child.
    #[arg(long)]
    inner: bool,
    /// One object with the verdict at the end, nothing else.
    #[arg(long)]
    json: bool,
}

pub(super) fn address(socket: &Path, command: AddressCommand) -> Result<(), Failure> {
    let (action, args, check) = match command {
        AddressCommand::Add(args) => (AddressVerb::Add, args, false),
        AddressCommand::Remove(args) => (AddressVerb::Remove, args, false),
        AddressCommand::Update(args) => (AddressVerb::Update, args, false),
        AddressCommand::Additional(args) => (AddressVerb::Additional, args, false),
        AddressCommand::Check { action, args } => (action, args, true),
    };
    let AddressArgs { name: target, addr, old, inner, json } = args;
    if old.is_some() && action != AddressVerb::Update {
        return Err(Failure::Failed("--old is for an update".to_string()));
    }
    let request = Request::Address { target, action, addr, old, check, inner };
    client::operate(socket, &request, json, Some(TIMEOUT))
}
