//! Policies that wait for traffic: what an SA is set up for when a packet wants one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Instant;

use mobikex_common::sa::PolicyId;
use tracing::info;

use super::{Command, Endpoint};
use crate::config::{Child, Config, Connection, DpdAction};
use crate::ike::child::resolve;
use crate::ike::output::Output;

/// A connection and a child of it.
type Name = (String, String);

/// The traps that are installed.
#[derive(Default)]
pub(in crate::ike) struct Traps {
    policies: BTreeMap<Name, PolicyId>,
    names: HashMap<PolicyId, Name>,
}

impl Traps {
    /// The policy of a trap.
    pub(in crate::ike) fn policy(&self, connection: &str, child: &str) -> Option<PolicyId> {
        self.policies.get(&(connection.to_owned(), child.to_owned())).copied()
    }

    /// Whether a policy is one of them.
    pub(in crate::ike) fn contains(&self, policy: PolicyId) -> bool {
        self.names.contains_key(&policy)
    }

    fn insert(&mut self, name: Name, policy: PolicyId) {
        self.names.insert(policy, name.clone());
        self.policies.insert(name, policy);
    }

    /// Removes those that are not wanted; their policies.
    fn retain(&mut self, wanted: impl Fn(&Name) -> bool) -> Vec<PolicyId> {
        let mut gone = Vec::new();
        self.policies.retain(|name, policy| {
            let stays = wanted(name);
            if !stays {
                gone.push(*policy);
            }
            stays
        });
        gone.iter().for_each(|policy| {
            self.names.remove(policy);
        });
        gone
    }
}

impl Endpoint {
    /// Removes the traps that `config` has not.
    pub(super) fn remove_traps(&mut self, config: &Config) {
        let trapped = |conn: &Connection| {
            let traps = |c: &&Child| {
                c.start_action.traps() || c.close_action.traps() || c.dpd_action == DpdAction::Trap
            };
            let children = conn.children.iter().filter(traps);
            children.map(|c| (conn.name.clone(), c.name.clone())).collect::<Vec<Name>>()
        };
        let wanted: BTreeSet<Name> = config.connections.iter().flat_map(trapped).collect();
        for policy in self.traps.retain(|name| wanted.contains(name)) {
            self.out.push_back(Output::RemovePolicy(policy));
        }
    }

    /// Installs the traps whose addresses are known.
    pub(super) fn install_traps(&mut self) {
        let config = self.config.clone();
        for conn in &config.connections {
            let (Some(local), Some(remote)) = (self.local_for(conn), conn.remote_addr()) else { continue };
            for child in conn.children.iter().filter(|c| c.start_action.traps()) {
                if self.traps.policy(&conn.name, &child.name).is_some() {
                    continue;
                }
                let policy = self.ids.policy();
                self.traps.insert((conn.name.clone(), child.name.clone()), policy);
                self.out.push_back(Output::InstallTrap {
                    policy,
                    ts_local: resolve(&child.local_ts, SocketAddr::new(local, 0)),
                    ts_remote: resolve(&child.remote_ts, SocketAddr::new(remote, 0)),
                    mode: child.mode,
                });
            }
        }
    }

    /// The policy of a child that is gone waits for traffic from now on, unless another one does, or the child is there again.
    pub(super) fn keep_trap(&mut self, name: Name, policy: PolicyId) {
        let used = self.sas.with_policy(policy).any(|sa| sa.children.iter().any(|c| !c.has_ended()));
        let there = self.has_live_child(&name.0, &name.1);
        if self.traps.policy(&name.0, &name.1).is_none() && (used || !there) {
            self.traps.insert(name, policy);
        } else if !used {
            self.out.push_back(Output::RemovePolicy(policy));
        }
    }

    /// Whether there is such a Child SA, other than on an IKE SA that is about to end.
    fn has_live_child(&self, connection: &str, child: &str) -> bool {
        self.sas.of_connection(connection).any(|sa| !sa.is_leaving() && sa.has_child(child))
    }

    /// Traffic wants an SA for a policy.
    pub(super) fn acquire(&mut self, now: Instant, policy: PolicyId) {
        let Some((connection, child)) = self.traps.names.get(&policy).cloned() else { return };
        let busy = self.sas.of_connection(&connection).any(|sa| sa.peer().is_none());
        if !busy && !self.has_live_child(&connection, &child) {
            info!(target: "CHD", "creating acquire job for {connection}/{child}");
            if let Err(error) = self.handle_command(now, Command::Up { connection, child: Some(child) }) {
                info!(target: "IKE", "{error}");
            }
        }
    }
}
