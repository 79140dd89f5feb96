//! What operators, and the daemon on their behalf, ask of an endpoint.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use mobikex_common::sa::ChildSaId;
use mobikex_common::wire::ike::Identification;

use super::Endpoint;
use crate::config::{Connection, Unique};
use crate::ike::ctx::Ctx;
use crate::ike::mobike_x::{Request, Scope, Wish};
use crate::ike::sa::{Gone, IkeSa};
use crate::ike::tasks::Task;
use crate::ike::versions::Version;

/// What an operator, or the daemon on their behalf, asks for.
#[derive(Clone, Debug)]
pub enum Command {
    /// Set up a connection, or one child of it.
    Up {
        /// Connection name.
        connection: String,
        /// Child name; all with `start_action = start`, or the first, if absent. Of a connection without children the IKE SA.
        child: Option<String>,
    },
    /// Take a connection down, or one child of it.
    Down {
        /// Connection name.
        connection: String,
        /// Child name.
        child: Option<String>,
    },
    /// Rekey the IKE SA of a connection, or one child of it.
    Rekey {
        /// Connection name.
        connection: String,
        /// Child name.
        child: Option<String>,
    },
    /// An action on addresses of an established connection, by hand. Its verdict comes as an event.
    Address {
        /// Connection name.
        connection: String,
        /// Child name; the IKE SA and all its Child SAs if absent.
        child: Option<String>,
        /// What to do.
        action: AddressAction,
        /// Only ask whether the peer would.
        check: bool,
        /// Inner addresses rather than outer ones.
        inner: bool,
    },
    /// Delete everything with the peers.
    Shutdown,
}

/// An action on our addresses (MOBIKE-X 5.1, 5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressAction {
    /// Use it too.
    Add(IpAddr),
    /// Use it no more.
    Remove(IpAddr),
    /// Only let the peer know of it: the whole list of alternative addresses is this one (MOBIKE-X 5.5).
    Additional(IpAddr),
    /// Replace one, or all, by another.
    Update {
        /// The one to be replaced; all if absent.
        old: Option<IpAddr>,
        /// The one to use instead.
        new: IpAddr,
    },
}

/// Why a command could not be started.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Nothing by that name is configured.
    #[error("no connection or child '{0}' is configured")]
    Unknown(String),
    /// Nothing by that name is up.
    #[error("'{0}' has no SA")]
    NoSa(String),
    /// Neither side's addresses are known well enough to start.
    #[error("'{0}' cannot be started from here: {1}")]
    NoAddress(String, &'static str),
    /// The attempt failed before the first message.
    #[error("'{0}' cannot be started: {1}")]
    Failed(String, String),
}

impl Endpoint {
    /// Carries out a command, or says why it cannot be started. Its outcome comes as events.
    pub fn handle_command(&mut self, now: Instant, command: Command) -> Result<(), CommandError> {
        match command {
            Command::Up { connection, child } => self.up(now, &connection, child),
            Command::Down { connection, child } => {
                self.each(now, &connection, child.as_deref(), |sa, ctx, child| match sa.peer() {
                    Some(_) => sa.take_down(ctx, child, "taken down"),
                    None => Err(sa.close(ctx, "taken down", false)),
                })
            }
            Command::Rekey { connection, child } => {
                self.each(now, &connection, child.as_deref(), |sa, ctx, child| {
                    // What is only just coming up is new enough.
                    if sa.peer().is_some() {
                        sa.add_task(ctx, child.map_or(Task::RekeyIke, Task::RekeyChild));
                    }
                    Ok(())
                })
            }
            Command::Address { connection, child, action, check, inner } => {
                self.address(now, &connection, child.as_deref(), action, (check, inner))
            }
            Command::Shutdown => {
                for id in self.sas.ids() {
                    self.with_sa(now, id, |sa, ctx| {
                        if sa.peer().is_none() || sa.rekeyed_by.is_some() {
                            return Err(sa.close(ctx, "shutting down", false));
                        }
                        sa.tasks.clear();
                        sa.take_down(ctx, None, "shutting down")
                    });
                }
                Ok(())
            }
        }
    }

    /// The connection of a name, as it is configured now.
    pub(in crate::ike) fn connection(&self, name: &str) -> Option<Arc<Connection>> {
        self.connections.iter().find(|c| c.name == name).cloned()
    }

    fn up(&mut self, now: Instant, name: &str, child: Option<String>) -> Result<(), CommandError> {
        let conn = self.connection(name).ok_or_else(|| CommandError::Unknown(name.into()))?;
        if let Some(child) = child.as_ref().filter(|c| !conn.children.iter().any(|have| have.name == **c)) {
            return Err(CommandError::Unknown(format!("{name}/{child}")));
        }
        let wanted: Vec<String> = match child {
            Some(child) => vec![child],
            None => {
                let starting = conn.children.iter().filter(|c| c.start_action.starts());
                let names: Vec<String> = starting.map(|c| c.name.clone()).collect();
                if names.is_empty() {
                    conn.children.iter().take(1).map(|c| c.name.clone()).collect()
                } else {
                    names
                }
            }
        };
        let existing = self
            .sas
            .of_connection(name)
            .find(|sa| {
                sa.rekeyed_by.is_none() && !sa.is_leaving() && (sa.initiator.is_us() || sa.peer().is_some())
            })
            .map(|sa| sa.id);
        if let Some(id) = existing {
            self.with_sa(now, id, |sa, ctx| {
                for name in wanted {
                    if sa.peer().is_none() {
                        if !sa.wanted.contains(&name) {
                            sa.wanted.push_back(name);
                        }
                    } else if !sa.has_child(&name) {
                        sa.add_task(ctx, Task::CreateChild(name));
                    }
                }
                Ok(())
            });
            return Ok(());
        }
        self.start(now, conn, wanted).map(drop)
    }

    /// Initiates an IKE SA; returns its number.
    pub(in crate::ike) fn start(
        &mut self,
        now: Instant,
        conn: Arc<Connection>,
        wanted: Vec<String>,
    ) -> Result<u32, CommandError> {
        let no_address = |reason| CommandError::NoAddress(conn.name.clone(), reason);
        let remote = conn.remote_addr().ok_or_else(|| no_address("remote_addrs names no single address"))?;
        let pairs = self.pairs_for(&conn);
        if pairs.is_empty() {
            return Err(no_address("there is no route to the peer"));
        }
        let there = |sa: &IkeSa| sa.peer().is_some() && sa.remote.ip() == remote;
        let theirs = |want: &Identification, sa: &IkeSa| sa.peer().is_some_and(|peer| want.allows(peer.id()));
        let known = self.sas.sending_to(remote).any(there)
            || match conn.remotes().last().and_then(|round| round.id.as_ref()) {
                Some(want) if want.is_pattern() => self.sas.iter().any(|sa| theirs(want, sa)),
                Some(want) => self.sas.of_peer(want).any(|sa| theirs(want, sa)),
                None => false,
            };
        let first_contact = !known && conn.unique != Unique::Never;
        let (started, effects) =
            self.with_ctx(now, |ctx| IkeSa::initiate(ctx, Arc::clone(&conn), pairs, wanted));
        self.apply(now, effects);
        match started {
            Ok(mut sa) => {
                sa.first_contact = first_contact;
                let id = sa.id;
                self.sas.put(Box::new(sa));
                Ok(id)
            }
            Err(error) => Err(CommandError::Failed(conn.name.clone(), error.to_string())),
        }
    }

    fn address(
        &mut self,
        now: Instant,
        name: &str,
        child: Option<&str>,
        action: AddressAction,
        (check, inner): (bool, bool),
    ) -> Result<(), CommandError> {
        let refuse = |reason: &str| Err(CommandError::Failed(name.into(), reason.into()));
        let live = |sa: &&IkeSa| sa.rekeyed_by.is_none() && sa.peer().is_some();
        let Some(sa) = self.sas.of_connection(name).find(live) else {
            return Err(CommandError::NoSa(name.into()));
        };
        if sa.mobility.version != Version::MobikeX {
            return refuse(
                "MOBIKE-X is not agreed with the peer, so that addresses cannot be changed one by one",
            );
        }
        let scopes: Vec<Scope> = match child {
            None if inner => return refuse("inner addresses belong to a child: name it as CONNECTION/CHILD"),
            None => vec![Scope::All],
            Some(child) => {
                let meant = sa.children.iter().filter(|c| c.is_live() && c.config.name == child);
                meant.map(|c| Scope::Child(c.id)).collect()
            }
        };
        if let (true, Some(child)) = (scopes.is_empty(), child) {
            return Err(CommandError::NoSa(format!("{name}/{child}")));
        }
        let wish = match action {
            AddressAction::Add(addr) => Wish::Add(Some(addr)),
            AddressAction::Remove(addr) => Wish::Remove(addr),
            AddressAction::Additional(addr) => Wish::Additional(addr),
            AddressAction::Update { old, new } => Wish::Update { old, new: Some(new) },
        };
        let id = sa.id;
        self.with_sa(now, id, |sa, ctx| {
            for scope in scopes {
                let request = Request { wish: wish.clone(), scope, inner, check, by_hand: true };
                sa.add_task(ctx, Task::Address(request));
            }
            Ok(())
        });
        Ok(())
    }

    /// Does `work` with every SA of a connection, or for every child of a name.
    fn each(
        &mut self,
        now: Instant,
        name: &str,
        child: Option<&str>,
        work: impl Fn(&mut IkeSa, &mut Ctx<'_>, Option<ChildSaId>) -> Result<(), Gone>,
    ) -> Result<(), CommandError> {
        let ids: Vec<u32> =
            self.sas.of_connection(name).filter(|sa| sa.rekeyed_by.is_none()).map(|sa| sa.id).collect();
        let mut found = false;
        for id in ids {
            self.with_sa(now, id, |sa, ctx| {
                match child {
                    None => {
                        found = true;
                        work(sa, ctx, None)?;
                    }
                    Some(child) => {
                        let ids: Vec<_> = sa
                            .children
                            .iter()
                            .filter(|c| c.is_live() && c.config.name == child)
                            .map(|c| c.id)
                            .collect();
                        found |= !ids.is_empty();
                        for id in ids {
                            work(sa, ctx, Some(id))?;
                        }
                    }
                }
                Ok(())
            });
        }
        if found {
            Ok(())
        } else {
            Err(CommandError::NoSa(child.map_or(name.into(), |c| format!("{name}/{c}"))))
        }
    }
}
