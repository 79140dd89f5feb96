//! Commands that take a while: what each waits for, judged by what the engine shows and tells.

use std::collections::BTreeSet;

use crate::config::{Connection, StartAction};
use crate::ike::{Event, IkeSaView};
use crate::protocol::Target;

/// A command under way.
#[derive(Debug)]
pub struct Operation {
    target: Target,
    goal: Goal,
    /// The latest bad news about the connection.
    reason: Option<String>,
}

#[derive(Debug)]
enum Goal {
    /// These children are installed, or there is an IKE SA if there are to be none.
    Up(Vec<String>),
    /// None of these SAs is left.
    Down(Known),
    /// There is one that is not among these.
    Rekey(Known),
    /// The peer has judged.
    Verdict,
}

/// IKE SAs, or Child SAs if the target names a child.
type Known = BTreeSet<u32>;

impl Operation {
    /// Waits for a connection, or one child of it, to come up.
    pub fn up(target: Target, connection: &Connection) -> Self {
        let children = match &target.child {
            Some(child) => vec![child.clone()],
            // What the engine sets up when no child is named.
            None => {
                let start = |c: &&crate::config::Child| c.start_action == StartAction::Start;
                let started: Vec<_> = connection.children.iter().filter(start).collect();
                let wanted =
                    if started.is_empty() { connection.children.iter().take(1).collect() } else { started };
                wanted.into_iter().map(|c| c.name.clone()).collect()
            }
        };
        Self { target, goal: Goal::Up(children), reason: None }
    }

    /// Waits for the SAs that are there now to go. `now` is the view before the command.
    pub fn down(target: Target, now: &[IkeSaView]) -> Self {
        let known = known(&target, now, |_| true);
        Self { target, goal: Goal::Down(known), reason: None }
    }

    /// Waits for a successor. `now` is the view before the command.
    pub fn rekey(target: Target, now: &[IkeSaView]) -> Self {
        let known = known(&target, now, |_| true);
        Self { target, goal: Goal::Rekey(known), reason: None }
    }

    /// Waits for the peer's verdict about an address.
    pub fn address(target: Target) -> Self {
        Self { target, goal: Goal::Verdict, reason: None }
    }

    /// The connection that it is about, whose SAs decide.
    pub fn connection(&self) -> &str {
        &self.target.connection
    }

    /// Takes in what happened and what there is now: the outcome, once there is one.
    pub fn step(&mut self, events: &[Event], now: &[IkeSaView]) -> Option<Result<(), String>> {
        let mut failed = None;
        for event in events {
            match event {
                Event::IkeFailed { connection, reason, .. } if *connection == self.target.connection => {
                    self.reason = Some(reason.clone());
                }
                Event::IkeDown { ike, reason } if is_of(ike, &self.target.connection, '[') => {
                    self.reason = Some(reason.clone());
                }
                Event::ChildFailed { ike, child, reason }
                    if is_of(ike, &self.target.connection, '[') && self.concerns(child) =>
                {
                    failed = Some(reason.clone());
                }
                Event::AddressAction { ike, by_hand: true, verdict, .. }
                    if matches!(self.goal, Goal::Verdict) && is_of(ike, &self.target.connection, '[') =>
                {
                    return Some(if verdict == "done" {
                        Ok(())
                    } else {
                        Err(format!("the peer answers {verdict}"))
                    });
                }
                _ => {}
            }
        }
        let mut of_connection = now.iter().filter(|sa| sa.name == self.target.connection).peekable();
        let live = |state: &str| matches!(state, "INSTALLED" | "REKEYING");
        let reached = match &self.goal {
            Goal::Verdict => false,
            Goal::Up(children) if children.is_empty() => {
                now.iter().any(|sa| sa.name == self.target.connection && sa.state == "ESTABLISHED")
            }
            Goal::Up(children) => children.iter().all(|name| {
                now.iter()
                    .filter(|sa| sa.name == self.target.connection)
                    .flat_map(|sa| &sa.children)
                    .any(|c| c.name == *name && live(c.state))
            }),
            Goal::Down(gone) => known(&self.target, now, |state| state != "DELETED").is_disjoint(gone),
            Goal::Rekey(old) => {
                let up = known(&self.target, now, |state| state == "ESTABLISHED" || live(state));
                up.difference(old).next().is_some()
            }
        };
        if reached {
            return Some(Ok(()));
        }
        if matches!(self.goal, Goal::Down(_)) {
            return None;
        }
        if let Some(reason) = failed {
            return Some(Err(reason));
        }
        // An attempt that is repeated shows as another IKE SA.
        if of_connection.peek().is_none() {
            return Some(Err(self.reason.clone().unwrap_or_else(|| "there is no IKE_SA any more".into())));
        }
        None
    }

    fn concerns(&self, child: &str) -> bool {
        // A failed rekeying names the SA, `net{3}`, a failed set-up the configuration, `net`.
        match &self.goal {
            Goal::Up(children) => children.iter().any(|c| c == child || is_of(child, c, '{')),
            _ => self.target.child.as_ref().is_some_and(|c| c == child || is_of(child, c, '{')),
        }
    }
}

/// Whether an SA's name such as `home[1]` belongs to `configured`.
fn is_of(name: &str, configured: &str, bracket: char) -> bool {
    name.strip_prefix(configured).is_some_and(|rest| rest.starts_with(bracket))
}

fn known(target: &Target, now: &[IkeSaView], counts: impl Fn(&str) -> bool) -> Known {
    let sas = now.iter().filter(|sa| sa.name == target.connection);
    match &target.child {
        None => sas.filter(|sa| counts(sa.state)).map(|sa| sa.id).collect(),
        Some(name) => sas
            .flat_map(|sa| &sa.children)
            .filter(|c| c.name == *name && counts(c.state))
            .map(|c| c.id.0)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use mobikex_common::addr::{AddressSet, Path};
    use mobikex_common::sa::{ChildSaId, Mode};
    use mobikex_common::spi::{IkeSpi, Spi};

    use super::*;
    use crate::config::Child;
    use crate::ike::ChildSaView;

    fn sa(id: u32, name: &str, state: &'static str, children: &[(u32, &str, &'static str)]) -> IkeSaView {
        let end = "192.0.2.1:500".parse().unwrap();
        let child = |&(id, name, state): &(u32, &str, &'static str)| ChildSaView {
            id: ChildSaId(id),
            name: name.into(),
            state,
            mode: Mode::Tunnel,
            spi_in: Spi(0xc000_0000 + id),
            spi_out: Spi(0xc100_0000 + id),
            suite: String::new(),
            resource: None,
            ts_local: vec![],
            ts_remote: vec![],
            addresses: AddressSet::single(Path { local: end, remote: end }, true),
            local_addresses: vec![],
            remote_addresses: vec![],
            installed: 0,
            rekey_in: None,
        };
        IkeSaView {
            id,
            name: name.into(),
            state,
            initiator: true,
            spi_i: IkeSpi(1),
            spi_r: IkeSpi(2),
            local: end,
            remote: end,
            mobike: crate::ike::Version::None,
            paths: vec![],
            alternates: vec![],
            local_id: None,
            remote_id: None,
            remote_eap_id: None,
            local_rounds: vec![],
            remote_rounds: vec![],
            remote_vips: vec![],
            given: None,
            suite: None,
            established: None,
            rekey_in: None,
            children: children.iter().map(child).collect(),
        }
    }

    fn home() -> Connection {
        let mut conn = Connection::new("home");
        conn.children = vec![Child::new("a"), Child::new("b")];
        conn.children[1].start_action = StartAction::Start;
        conn
    }

    fn failed(connection: &str, reason: &str) -> Event {
        let ike = format!("{connection}[1]");
        Event::IkeFailed { connection: connection.into(), ike, reason: reason.into() }
    }

    #[test]
    fn up_waits_for_the_children_that_the_engine_starts() {
        let mut up = Operation::up("home".parse().unwrap(), &home());
        assert_eq!(up.step(&[], &[sa(1, "home", "CONNECTING", &[])]), None);
        assert_eq!(up.step(&[], &[sa(1, "home", "ESTABLISHED", &[(1, "a", "INSTALLED")])]), None);
        let up_now = [sa(1, "home", "ESTABLISHED", &[(1, "a", "INSTALLED"), (2, "b", "INSTALLED")])];
        assert_eq!(up.step(&[], &up_now), Some(Ok(())));
        let mut one = Operation::up("home/a".parse().unwrap(), &home());
        assert_eq!(
            one.step(&[], &[sa(1, "other", "ESTABLISHED", &[(1, "a", "INSTALLED")])]),
            Some(Err("there is no IKE_SA any more".to_string()))
        );
    }

    #[test]
    fn up_waits_for_the_ike_sa_of_a_connection_without_children() {
        let mut up = Operation::up("alone".parse().unwrap(), &Connection::new("alone"));
        assert_eq!(up.step(&[], &[sa(1, "alone", "CONNECTING", &[]), sa(2, "b", "ESTABLISHED", &[])]), None);
        assert_eq!(up.step(&[], &[sa(1, "alone", "ESTABLISHED", &[])]), Some(Ok(())));
        let mut up = Operation::up("alone".parse().unwrap(), &Connection::new("alone"));
        assert_eq!(up.step(&[failed("alone", "no answer")], &[]), Some(Err("no answer".into())));
    }

    #[test]
    fn up_fails_with_the_reason_but_not_while_it_is_tried_again() {
        let mut up = Operation::up("home".parse().unwrap(), &home());
        let again = [sa(2, "home", "CONNECTING", &[])];
        assert_eq!(up.step(&[failed("home", "no answer"), failed("homer", "x")], &again), None);
        assert_eq!(up.step(&[], &[]), Some(Err("no answer".into())));
        let mut up = Operation::up("home".parse().unwrap(), &home());
        let refused = Event::ChildFailed { ike: "home[1]".into(), child: "b".into(), reason: "TS".into() };
        let there = [sa(1, "home", "ESTABLISHED", &[])];
        assert_eq!(up.step(std::slice::from_ref(&refused), &there), Some(Err("TS".into())));
        let mut other = Operation::up("home/a".parse().unwrap(), &home());
        assert_eq!(other.step(&[refused], &there), None);
    }

    #[test]
    fn down_and_rekey_are_judged_by_what_is_left_and_what_is_new() {
        let before = [sa(1, "home", "ESTABLISHED", &[(1, "a", "INSTALLED")])];
        let mut down = Operation::down("home/a".parse().unwrap(), &before);
        assert_eq!(down.step(&[], &before), None);
        let lingering = [sa(1, "home", "ESTABLISHED", &[(1, "a", "DELETED")])];
        assert_eq!(down.step(&[], &lingering), Some(Ok(())));
        let mut down = Operation::down("home".parse().unwrap(), &before);
        assert_eq!(down.step(&[], &[sa(1, "home", "DELETING", &[])]), None);
        assert_eq!(down.step(&[], &[sa(2, "home", "CONNECTING", &[])]), Some(Ok(())));

        let mut rekey = Operation::rekey("home/a".parse().unwrap(), &before);
        assert_eq!(rekey.step(&[], &before), None);
        let after = [sa(1, "home", "ESTABLISHED", &[(1, "a", "REKEYED"), (2, "a", "INSTALLED")])];
        assert_eq!(rekey.step(&[], &after), Some(Ok(())));
        let mut rekey = Operation::rekey("home".parse().unwrap(), &before);
        let down = Event::IkeDown { ike: "home[1]".into(), reason: "peer".into() };
        assert_eq!(rekey.step(&[down], &[]), Some(Err("peer".into())));
    }
}
