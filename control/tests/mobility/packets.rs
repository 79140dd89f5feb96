//! What the packet path of a host would hold and do, as far as the engine can tell: Child SAs, echoes, traffic.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mobikex::ike::{ChildEvent, Output};
use mobikex_common::addr::{Path, Scheduler, WeightedPath};
use mobikex_common::sa::{ChildSaId, ChildSaParams};
use mobikex_common::wire::echo::Echo;
use tracing::debug;

use super::{Cargo, Host, World};

/// Octets of a packet of the traffic.
const PACKET: u64 = 100;

/// What an ESP packet of the simulation shows and holds.
#[derive(Clone)]
pub(super) struct Esp {
    /// Of the SA at the receiver.
    pub(super) spi: u32,
    sequence: u64,
    encap: bool,
    /// Traffic if absent.
    echo: Option<Echo>,
}

impl Esp {
    /// Whether it passes a NAT: only in UDP (RFC 3948).
    pub(super) fn in_udp(&self) -> bool {
        self.encap
    }
}

/// Counters of the packet path.
#[derive(Default)]
pub(super) struct Packets {
    /// By our SPI of the peer.
    sent: BTreeMap<u32, u64>,
    /// The newest sequence number of each SA.
    highest: BTreeMap<ChildSaId, u64>,
    /// When the engine was told of a new source last.
    told: Option<Instant>,
    /// Octets in and out over each path of each SA.
    octets: BTreeMap<(ChildSaId, Path), (u64, u64)>,
    turn: usize,
    /// Packets of the traffic that arrived.
    pub(super) arrived: u64,
    /// Those that arrived for an SA that is not there.
    pub(super) homeless: u64,
}

impl Host {
    fn stop_sending(&mut self, params: &ChildSaParams) {
        for (other, outbound) in self.children.values_mut() {
            *outbound &= (other.policy, other.worker) != (params.policy, params.worker);
        }
    }

    fn next_sequence(&mut self, spi: u32) -> u64 {
        let sent = self.packets.sent.entry(spi).or_default();
        *sent += 1;
        *sent
    }

    /// The paths that a packet goes over now, if any (RFC 4555 3.7: three times what came, where it is limited).
    fn choose(&mut self, params: &ChildSaParams) -> Vec<WeightedPath> {
        let used = || params.addresses.paths.iter().filter(|p| p.weight > 0);
        self.packets.turn = self.packets.turn.wrapping_add(1);
        let chosen: Vec<WeightedPath> = match params.addresses.scheduler {
            Scheduler::Redundant => used().copied().collect(),
            Scheduler::Backup => used().max_by_key(|p| p.weight).copied().into_iter().collect(),
            Scheduler::Flow | Scheduler::Packet => {
                used().nth(self.packets.turn % used().count().max(1)).copied().into_iter().collect()
            }
        };
        let octets = &mut self.packets.octets;
        chosen
            .into_iter()
            .filter(|p| {
                let (came, went) = octets.entry((params.id, p.path)).or_default();
                let may = !p.limited || *went + PACKET <= 3 * *came;
                *went += if may { PACKET } else { 0 };
                may
            })
            .collect()
    }
}

impl World {
    /// Carries out what the endpoints ask for.
    pub fn collect(&mut self) {
        loop {
            let mut idle = true;
            for index in 0..2 {
                while let Some(output) = self.hosts[index].endpoint.poll_output() {
                    idle = false;
                    self.carry_out(index, output);
                }
            }
            if idle {
                return;
            }
        }
    }

    fn carry_out(&mut self, index: usize, output: Output) {
        self.changed |= !matches!(output, Output::Transmit { .. } | Output::Echo { .. });
        let host = &mut self.hosts[index];
        match output {
            Output::Transmit { local, remote, nat_t, data } => {
                *host.sent_to.entry(remote.ip()).or_default() += 1;
                self.sent.push((index, data.clone()));
                debug!(target: "SIM", "{:?} host {index} sends {local} -> {remote}", self.now - self.start);
                self.fly(index, local, remote, Cargo::Ike { nat_t, data });
            }
            Output::Echo { child, path, encap, echo, .. } => {
                if self.traffic.is_none() {
                    host.count += u64::from(host.sending);
                }
                let count = host.count;
                let spi = host.children[&child].0.spi_out.0;
                let sequence = host.next_sequence(spi);
                host.endpoint.note_traffic(self.now, child, &path, count, 0);
                let esp = Esp { spi, sequence, encap, echo: Some(echo) };
                self.fly(index, path.local, path.remote, Cargo::Esp(esp));
            }
            Output::InstallChild { params, outbound } => {
                if outbound {
                    host.stop_sending(&params);
                }
                let old = host.children.insert(params.id, (*params, outbound));
                assert!(old.is_none(), "a Child SA was installed twice");
            }
            Output::ActivateOutbound(id) => {
                let params = host.children[&id].0.clone();
                host.stop_sending(&params);
                host.children.get_mut(&id).unwrap().1 = true;
            }
            Output::DeactivateOutbound(id) => host.children.get_mut(&id).unwrap().1 = false,
            Output::RemoveChild(id) => {
                host.children.remove(&id).expect("only installed Child SAs are removed");
            }
            Output::SetAddresses { children, set } => {
                debug!(target: "SIM", "{:?} host {index} uses {:?} {:?}", self.now - self.start, set.scheduler, set.paths.iter().map(|p| format!("{} {}{}", p.path, p.weight, if p.limited {"!"} else {""})).collect::<Vec<_>>());
                for id in children {
                    let (params, _) = host.children.get_mut(&id).expect("only installed Child SAs change");
                    params.addresses = set.clone();
                }
            }
            Output::SetSelectors { child, set, ts_local, ts_remote } => {
                let (params, _) = host.children.get_mut(&child).unwrap();
                (params.addresses, params.ts_local, params.ts_remote) = (set, ts_local, ts_remote);
            }
            Output::Event(event) => host.events.push(event),
            Output::WatchTraffic(children) => host.watched = Some(children),
            Output::WatchWorkers { child, workers } => {
                host.watched_workers.extend(workers.into_iter().map(|worker| (child, worker)));
            }
            Output::RunScript { up, script } => {
                let known = host.raised.iter().position(|raised| Arc::ptr_eq(raised, &script));
                match known {
                    None if up => host.raised.push(Arc::clone(&script)),
                    Some(index) if !up => drop(host.raised.remove(index)),
                    _ => panic!("a script is told of {} out of turn", script.child),
                }
                host.told.push((up, script));
            }
            Output::SaveKeys(keys) => host.keys.push(*keys),
            Output::CountPaths(children) => {
                let octets = host.packets.octets.iter().filter(|((id, _), _)| children.contains(id));
                let octets: Vec<(Path, u64)> = octets.map(|((_, path), (_, went))| (*path, *went)).collect();
                host.endpoint.note_octets(self.now, children[0], &octets);
            }
            Output::InstallAddress(addr) => assert!(host.vips.insert(addr), "{addr} is there already"),
            Output::RemoveAddress(addr) => assert!(host.vips.remove(&addr), "{addr} is not there"),
            Output::SetResolvers { servers, .. } => host.resolvers = servers,
            Output::CountPackets(child) => {
                host.count += u64::from(host.sending);
                host.endpoint.note_packets(self.now, child, host.count);
            }
            Output::InstallTrap { policy, .. } => drop(host.traps.insert(policy)),
            Output::RemovePolicy(policy) => {
                host.traps.remove(&policy);
                host.children.values_mut().for_each(|(p, outbound)| *outbound &= p.policy != policy);
            }
        }
    }

    /// The workers of a host that shall tell when they send on an SA that is not their own do so now.
    pub fn busy_workers(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        let sends = |id: &ChildSaId| host.children.get(id).is_some_and(|(_, outbound)| *outbound);
        let has_one =
            |worker: u32| host.children.values().any(|(p, outbound)| *outbound && p.worker == Some(worker));
        let told: Vec<_> =
            host.watched_workers.iter().filter(|(id, w)| sends(id) && !has_one(*w)).copied().collect();
        for (child, worker) in told {
            let host = &mut self.hosts[index];
            host.watched_workers.remove(&(child, worker));
            host.endpoint.handle_child_event(self.now, ChildEvent::OwnSa(child, worker));
        }
        self.collect();
    }

    /// Every host that has something to send sends a packet on each SA that it sends on.
    pub(super) fn send_traffic(&mut self) {
        for index in 0..2 {
            let host = &mut self.hosts[index];
            if !host.sending || host.asleep.is_some() {
                continue;
            }
            host.count += 1;
            if let Some(child) = host.watched.take().and_then(|c| c.first().copied()) {
                host.endpoint.handle_child_event(self.now, ChildEvent::Traffic(child));
            }
            self.busy_workers(index);
            let host = &mut self.hosts[index];
            let used: Vec<ChildSaParams> =
                host.children.values().filter(|(_, outbound)| *outbound).map(|(p, _)| p.clone()).collect();
            for params in used {
                let host = &mut self.hosts[index];
                let sequence = host.next_sequence(params.spi_out.0);
                for way in host.choose(&params) {
                    let esp = Esp { spi: params.spi_out.0, sequence, encap: way.encap, echo: None };
                    self.fly(index, way.path.local, way.path.remote, Cargo::Esp(esp));
                }
            }
        }
        self.collect();
    }

    pub(super) fn receive_esp(
        &mut self,
        to: usize,
        (destination, source): (SocketAddr, SocketAddr),
        esp: Esp,
    ) {
        let now = self.now;
        let host = &mut self.hosts[to];
        let Some((params, _)) = host.children.values().find(|(p, _)| p.spi_in.0 == esp.spi) else {
            host.packets.homeless += 1;
            return;
        };
        let (id, out) = (params.id, params.spi_out.0);
        let path = Path { local: destination, remote: source };
        let on_path = params.addresses.paths.iter().any(|p| p.path == path && p.encap == esp.encap);
        let first = !host.packets.highest.contains_key(&id);
        let highest = host.packets.highest.entry(id).or_default();
        let newest = esp.sequence > *highest;
        *highest = esp.sequence.max(*highest);
        host.packets.octets.entry((id, path)).or_default().0 += PACKET;
        if first && self.traffic.is_some() {
            host.endpoint.handle_child_event(now, ChildEvent::FirstInbound(id));
        }
        let second = Duration::from_secs(1);
        if newest && !on_path && host.packets.told.is_none_or(|at| now.duration_since(at) >= second) {
            host.packets.told = Some(now);
            debug!(target: "SIM", "{:?} host {to} tells of ESP from {source} to {destination}", now - self.start);
            host.endpoint.handle_new_source(now, id, path);
        }
        match esp.echo {
            None => host.packets.arrived += u64::from(newest),
            Some(echo) if echo.response => host.endpoint.handle_echo(now, id, &echo, now),
            Some(echo) => {
                // Answered over the way that it came.
                let sequence = host.next_sequence(out);
                let answer = Echo { response: true, ..echo };
                let esp = Esp { spi: out, sequence, encap: esp.encap, echo: Some(answer) };
                self.fly(to, destination, source, Cargo::Esp(esp));
            }
        }
    }
}
