//! Two endpoints in fake time for tests that write requests themselves, as no endpoint of ours would, and read the
//! answers. Datagrams arrive at once; what goes to an address that nobody has is lost.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mobikex_common::wire::echo::Echo;
use mobikex_common::wire::ike::{
    ExchangeType, Header, Notify, NotifyType, Payload, PayloadType, parse_chain,
};
use mobikex_common::wire::mobike_x::{self, Parameter};

use super::ctx::Ctx;
use super::sa::{Gone, IkeSa};
use super::window::Exchange;
use super::{Command, Endpoint, Event, LocalAddress, Output};
use crate::config::{AddrPattern, AuthRound, Child, Config, Connection, PskSecret, TsPattern};

/// The address of each end.
pub(super) const ADDRS: [&str; 2] = ["192.0.2.1", "198.51.100.1"];

/// A datagram as it is sent.
#[derive(Clone)]
pub(super) struct Datagram {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) nat_t: bool,
    pub(super) data: Vec<u8>,
}

/// Something that an end has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    /// An IKE message has gone out.
    Sent,
    /// An SA was installed, to be sent on or not.
    Install(u32, bool),
    Activate(u32),
    Deactivate(u32),
    Remove(u32),
    RemovePolicy,
    InstallTrap,
}

/// See the module.
pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) ends: [Endpoint; 2],
    pub(super) events: [Vec<Event>; 2],
    /// Addresses of each end.
    pub(super) addresses: [BTreeSet<IpAddr>; 2],
    /// What each end has done otherwise with the packet path, and the messages between.
    pub(super) done: [Vec<Done>; 2],
    /// Datagrams that each end has sent.
    pub(super) sent: [Vec<Datagram>; 2],
    /// The payloads of the messages that each end has received.
    pub(super) heard: [Vec<Vec<Payload>>; 2],
    flights: Vec<(usize, Datagram)>,
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A notify with parameters.
pub(super) fn notice(kind: NotifyType, parameters: &[Parameter]) -> Payload {
    Payload::Notify(Notify::new(kind, mobike_x::emit(parameters)))
}

/// The notifies of an answer about actions, with the IDs that they carry.
pub(super) fn verdicts(answer: &[Payload]) -> Vec<(NotifyType, Option<u16>)> {
    let verdict = |p: &Payload| match p {
        Payload::Notify(n) => {
            let parameters = mobike_x::parse(&n.data).unwrap_or_default();
            let id = parameters.iter().find_map(|p| if let Parameter::Id(id) = p { Some(*id) } else { None });
            Some((n.kind, id))
        }
        _ => None,
    };
    answer.iter().filter_map(verdict).collect()
}

/// The configuration of one end: a tunnel with a pre-shared key.
pub(super) fn config(me: usize) -> Config {
    let ids = ["a.example", "b.example"];
    let round = |i: usize| AuthRound { id: Some(ids[i].parse().unwrap()), ..AuthRound::default() };
    let nets = ["10.1.0.0/16", "10.2.0.0/16"].map(|net| vec![TsPattern::Fixed(net.parse().unwrap())]);
    let child = Child { local_ts: nets[me].clone(), remote_ts: nets[1 - me].clone(), ..Child::new("net") };
    let connection = Connection {
        remote_addrs: vec![AddrPattern::Range(ADDRS[1 - me].parse().unwrap())],
        local: round(me),
        remote: round(1 - me),
        children: vec![child],
        ..Connection::new("home")
    };
    let secret = PskSecret {
        name: "ike-1".into(),
        ids: ids.iter().map(|id| id.parse().unwrap()).collect(),
        secret: b"correct horse battery staple".to_vec().into(),
    };
    Config { connections: vec![connection], secrets: vec![secret], ..Config::default() }
}

impl Done {
    fn of(output: &Output) -> Option<Self> {
        match output {
            Output::Transmit { data, .. } if data.len() > 1 => Some(Self::Sent),
            Output::InstallChild { params, outbound } => Some(Self::Install(params.id.0, *outbound)),
            Output::ActivateOutbound(id) => Some(Self::Activate(id.0)),
            Output::DeactivateOutbound(id) => Some(Self::Deactivate(id.0)),
            Output::RemoveChild(id) => Some(Self::Remove(id.0)),
            Output::RemovePolicy(_) => Some(Self::RemovePolicy),
            Output::InstallTrap { .. } => Some(Self::InstallTrap),
            _ => None,
        }
    }
}

impl Pair {
    /// Not connected yet. `change` gets the number of the end and its connection.
    pub(super) fn new(change: impl Fn(usize, &mut Connection)) -> Self {
        Self::with(|me, config| change(me, &mut config.connections[0]))
    }

    /// As [`Self::new`], with the whole configuration to change.
    pub(super) fn with(change: impl Fn(usize, &mut Config)) -> Self {
        let now = Instant::now();
        let ends = [0, 1].map(|me| {
            let mut config = config(me);
            change(me, &mut config);
            Endpoint::new(now, config, [7 + me as u8; 32])
        });
        let mut pair = Self {
            now,
            ends,
            events: Default::default(),
            addresses: ADDRS.map(|addr| BTreeSet::from([ip(addr)])),
            done: Default::default(),
            sent: Default::default(),
            heard: Default::default(),
            flights: Vec::new(),
        };
        (0..2).for_each(|end| pair.tell_network(end));
        pair
    }

    /// Connected by the first end.
    pub(super) fn up(change: impl Fn(usize, &mut Connection)) -> Self {
        let mut pair = Self::new(change);
        pair.start(0);
        pair.run(Duration::from_secs(1));
        (0..2).for_each(|end| pair.sa(end, |sa, _| assert!(sa.pending.is_none() && sa.tasks.is_empty())));
        pair
    }

    pub(super) fn start(&mut self, end: usize) {
        self.command(end, Command::Up { connection: "home".into(), child: None });
    }

    /// Begins with another IKE SA beside the one that an end has, with its first child.
    pub(super) fn start_beside(&mut self, end: usize) {
        let conn = self.sa(end, |sa, _| sa.conn.clone());
        let wanted = vec![conn.children[0].name.clone()];
        self.ends[end].start(self.now, conn, wanted).unwrap();
        self.collect(end);
    }

    pub(super) fn command(&mut self, end: usize, command: Command) {
        self.ends[end].handle_command(self.now, command).unwrap();
        self.collect(end);
    }

    /// Gives an end one more address.
    pub(super) fn add(&mut self, end: usize, addr: &str) {
        self.addresses[end].insert(ip(addr));
        self.tell_network(end);
    }

    fn tell_network(&mut self, end: usize) {
        let reach = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        let local = |(addr, device): (&IpAddr, u32)| LocalAddress {
            addr: *addr,
            device,
            interface: format!("wan{device}"),
            reach: reach.clone(),
        };
        let list = self.addresses[end].iter().zip(2..).map(local).collect();
        self.ends[end].set_network(self.now, list);
        self.collect(end);
    }

    /// Works on the established IKE SA of an end.
    pub(super) fn sa<R>(&mut self, end: usize, work: impl FnOnce(&mut IkeSa, &mut Ctx<'_>) -> R) -> R {
        let live = self.ends[end].ike_sas(self.now).into_iter().find(|v| v.state == "ESTABLISHED");
        let id = live.unwrap_or_else(|| panic!("end {end} has no IKE SA: {:#?}", self.events)).id;
        self.sa_by_id(end, id, work)
    }

    pub(super) fn sa_by_id<R>(
        &mut self,
        end: usize,
        id: u32,
        work: impl FnOnce(&mut IkeSa, &mut Ctx<'_>) -> R,
    ) -> R {
        let done = self.ends[end].with_sa(self.now, id, |sa, ctx| Ok::<_, Gone>(work(sa, ctx))).unwrap();
        self.collect(end);
        done
    }

    /// Sends an INFORMATIONAL request of `end` with these payloads, and returns those of the answer.
    pub(super) fn ask(&mut self, end: usize, payloads: &[Payload]) -> Vec<Payload> {
        let source = self.sa(end, |sa, _| sa.local);
        self.ask_from(end, source, payloads)
    }

    /// As [`Self::ask`], from another address.
    pub(super) fn ask_from(&mut self, end: usize, source: SocketAddr, payloads: &[Payload]) -> Vec<Payload> {
        self.answer_from(end, source, payloads).1
    }

    /// As [`Self::ask_from`]; returns the request, too.
    pub(super) fn answer_from(
        &mut self,
        end: usize,
        source: SocketAddr,
        payloads: &[Payload],
    ) -> (Datagram, Vec<Payload>) {
        self.run(Duration::ZERO);
        let (data, destination, nat_t) = self.sa(end, |sa, ctx| {
            let data = sa
                .send_request(ctx, ExchangeType::INFORMATIONAL, Exchange::Liveness(None), payloads)
                .unwrap()
                .datagrams()
                .concat();
            (data, sa.remote, sa.nat_t)
        });
        // It leaves from where the test wants.
        self.flights.retain(|(_, flight)| flight.data != data);
        let request = Datagram { source, destination, nat_t, data };
        self.deliver(1 - end, request.clone());
        let answer = self.take_answer(end).expect("every request has an answer");
        self.deliver(end, answer);
        let heard = self.heard[end].last().expect("the answer was heard").clone();
        (request, heard)
    }

    /// An answer that is on its way to `end`.
    pub(super) fn take_answer(&mut self, end: usize) -> Option<Datagram> {
        self.take(end, |flight| Header::parse(&flight.data).is_ok_and(|h| h.flags.response))
    }

    /// The first datagram that is on its way to `end` and fits.
    pub(super) fn take(&mut self, end: usize, fits: impl Fn(&Datagram) -> bool) -> Option<Datagram> {
        let at = self.flights.iter().position(|(to, flight)| *to == end && fits(flight))?;
        Some(self.flights.remove(at).1)
    }

    /// Hands over a datagram.
    pub(super) fn deliver(&mut self, to: usize, datagram: Datagram) {
        if let Some(payloads) = self.read(to, &datagram.data) {
            self.heard[to].push(payloads);
        }
        let Datagram { source, destination, nat_t, data } = datagram;
        self.ends[to].handle_datagram(self.now, destination, source, nat_t, &data);
        self.collect(to);
    }

    fn read(&mut self, end: usize, data: &[u8]) -> Option<Vec<Payload>> {
        let header = Header::parse(data).ok()?;
        if header.next_payload != PayloadType::SK {
            return parse_chain(header.next_payload, &data[Header::LEN..]).ok();
        }
        let ids: Vec<u32> = self.ends[end].ike_sas(self.now).into_iter().map(|v| v.id).collect();
        ids.into_iter().find_map(|id| {
            let open = |sa: &mut IkeSa, _: &mut Ctx<'_>| Ok::<_, Gone>(sa.read(data));
            self.ends[end].with_sa(self.now, id, open).flatten()
        })
    }

    fn collect(&mut self, end: usize) {
        while let Some(output) = self.ends[end].poll_output() {
            self.done[end].extend(Done::of(&output));
            match output {
                Output::Transmit { local, remote, nat_t, data } if data.len() > 1 => {
                    let flight = Datagram { source: local, destination: remote, nat_t, data };
                    self.sent[end].push(flight.clone());
                    self.flights.push((1 - end, flight));
                }
                Output::Echo { child, path, echo, .. } if self.has(1 - end, path.remote) => {
                    let answer = Echo { response: true, ..echo };
                    self.ends[end].handle_echo(self.now, child, &answer, self.now);
                }
                Output::Event(event) => self.events[end].push(event),
                _ => {}
            }
        }
        self.ends[end].sas.check();
    }

    fn has(&self, end: usize, addr: SocketAddr) -> bool {
        self.addresses[end].contains(&addr.ip())
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            while !self.flights.is_empty() {
                let (to, flight) = self.flights.remove(0);
                if self.has(to, flight.destination) && self.has(1 - to, flight.source) {
                    self.deliver(to, flight);
                }
            }
            let next = self.ends.iter().filter_map(Endpoint::next_timeout).min();
            let Some(next) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(next);
            for index in 0..2 {
                self.ends[index].handle_timeout(self.now);
                self.collect(index);
            }
        }
        self.now = end;
    }

    /// The peer's half of the address set of an end's only live Child SA.
    pub(super) fn theirs(&mut self, end: usize) -> Vec<String> {
        self.sa(end, |sa, _| {
            let child = sa.children.iter().find(|c| c.is_live()).unwrap();
            child.halves.remote.iter().map(|o| o.addr.ip().to_string()).collect()
        })
    }

    /// Everything about addresses that an action could change at an end.
    pub(super) fn state(&mut self, end: usize) -> String {
        self.sa(end, |sa, _| {
            let children: Vec<_> = sa
                .children
                .iter()
                .map(|c| format!("{:?} {:?} {:?} {:?}", c.halves, c.ts_local, c.ts_remote, c.addresses.paths))
                .collect();
            let m = &sa.mobility;
            format!("{} {} {:?} {:?} {children:?}", sa.local, sa.remote, m.alternates, m.checks)
        })
    }

    pub(super) fn story(&self, end: usize) -> String {
        self.events[end].iter().map(|e| format!("  {end}: {e}\n")).collect()
    }
}
