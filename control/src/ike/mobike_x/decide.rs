//! What an action means for the SAs that it selects (MOBIKE-X 6, 7.4, 7.6, 8): decided on copies, so that nothing has
//! changed until everything of a message is settled.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use mobikex_common::sa::{ChildSaId, Mode};
use mobikex_common::spi::{IkeSpi, Spi};
use mobikex_common::ts::TrafficSelector;
use mobikex_common::wire::ike::NotifyType;
use mobikex_common::wire::mobike_x::{
    ALL_IKE_SAS, IKE_SA_ALONE, IKE_SA_AND_CHILD_SAS, IpParameter, Parameter, SpiParameter,
};

use super::selector::{Action, Kind, Named, Place};
use crate::ike::addresses::{Half, Halves, MAX_ADDRESSES, Outer, Replaces};

/// What an SA is to the selectors and the actions.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::ike) enum What {
    Ike {
        spis: (IkeSpi, IkeSpi),
    },
    Child {
        id: ChildSaId,
        spis: (Spi, Spi),
        mode: Mode,
        encap: bool,
        ts_local: Vec<TrafficSelector>,
        /// The half that the peer may speak about.
        ts_remote: Vec<TrafficSelector>,
        /// What our policy lets it say there; a dynamic selector is any address.
        permitted: Vec<TrafficSelector>,
    },
}

/// A working copy of an IKE SA or a Child SA.
#[derive(Clone, PartialEq, Debug)]
pub(in crate::ike) struct Object {
    /// Number of the IKE SA.
    pub(in crate::ike) sa: u32,
    pub(in crate::ike) what: What,
    pub(in crate::ike) halves: Halves,
    /// Set once an action has changed the copy.
    pub(in crate::ike) changed: bool,
    /// Its last address was taken away.
    pub(in crate::ike) closing: bool,
    /// Outer addresses that an UPDATE has replaced.
    pub(in crate::ike) replaced: Vec<Outer>,
    /// The alternative addresses of the message, which take the place of all before them.
    pub(in crate::ike) alternates: Option<Half>,
}

impl Object {
    pub(in crate::ike) fn new(sa: u32, what: What, halves: Halves) -> Self {
        Self { sa, what, halves, changed: false, closing: false, replaced: Vec::new(), alternates: None }
    }

    fn is_ike(&self) -> bool {
        matches!(self.what, What::Ike { .. })
    }

    fn mode(&self) -> Option<Mode> {
        match self.what {
            What::Ike { .. } => None,
            What::Child { mode, .. } => Some(mode),
        }
    }
}

/// What the decision depends on beside the SAs.
pub(in crate::ike) struct Situation<'a> {
    pub(in crate::ike) now: Instant,
    /// The IKE SA that carried the request.
    pub(in crate::ike) sa: u32,
    /// Where the request came from.
    pub(in crate::ike) source: SocketAddr,
    /// The port of an address that is named without one.
    pub(in crate::ike) port: u16,
    /// Whether local policy lets the peer have an outer address.
    pub(in crate::ike) acceptable: &'a dyn Fn(IpAddr) -> bool,
    /// Whether the peer is silent at an address, so that a NAT may show it elsewhere now.
    pub(in crate::ike) silent: &'a dyn Fn(SocketAddr) -> bool,
}

/// How an action ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::ike) enum Verdict {
    Done,
    /// Done, and an SA lost its last address (MOBIKE-X 6.8).
    Closing,
    Refused(NotifyType),
}

/// Judges an action and, unless it is only a check, carries it out on the copies. All SAs that it selects change or
/// none.
pub(in crate::ike) fn decide(objects: &mut [Object], action: &Action, situation: &Situation<'_>) -> Verdict {
    let chosen = select(objects, action, situation.sa);
    if chosen.is_empty() {
        return Verdict::Refused(NotifyType::UNMATCHED_SELECTOR_SET);
    }
    let mut next: Vec<(usize, Object)> =
        chosen.iter().map(|&index| (index, objects[index].clone())).collect();
    let verdict = match &action.kind {
        Kind::Additional(named) => additional(&mut next, named, situation),
        Kind::Update { place: Place::Outer, old, new } => update(&mut next, *old, new.as_ref(), situation),
        Kind::Add { place: Place::Outer, addr } => add(&mut next, addr.as_ref(), situation),
        Kind::Remove { place: Place::Outer, addr } => {
            remove(&mut next, addr.unwrap_or(situation.source.ip()))
        }
        Kind::Update { place: Place::Inner, old, new } => {
            inner(&mut next, Inner::Replace(*old, new.map_or(situation.source.ip(), |n| n.addr)))
        }
        Kind::Add { place: Place::Inner, addr } => {
            inner(&mut next, Inner::Add(addr.map_or(situation.source.ip(), |n| n.addr)))
        }
        Kind::Remove { place: Place::Inner, addr } => {
            inner(&mut next, Inner::Remove(addr.unwrap_or(situation.source.ip())))
        }
    };
    if !action.check && !matches!(verdict, Verdict::Refused(_)) {
        for (index, object) in next {
            objects[index] = object;
        }
    }
    verdict
}

// ---- selection -----------------------------------------------------------------------------------------------------

fn select(objects: &[Object], action: &Action, this: u32) -> Vec<usize> {
    let fits = |object: &Object| match (&action.selectors, &action.kind) {
        (Some(set), _) => set.iter().any(|selector| matches(object, selector, this)),
        (None, Kind::Additional(_)) => object.sa == this && object.is_ike(),
        (None, _) => object.sa == this,
    };
    objects.iter().enumerate().filter(|(_, o)| fits(o) && !o.closing).map(|(index, _)| index).collect()
}

/// Whether all parameters of a SELECTOR match. Only one that names other IKE SAs looks beyond the requester's own.
fn matches(object: &Object, selector: &[Parameter], this: u32) -> bool {
    let names_others = |p: &Parameter| {
        matches!(
            p,
            Parameter::Special(ALL_IKE_SAS)
                | Parameter::Spi(SpiParameter::Ike(_) | SpiParameter::IkePair(..))
        )
    };
    (object.sa == this || selector.iter().any(names_others)) && selector.iter().all(|p| fits(object, p, this))
}

fn fits(object: &Object, parameter: &Parameter, this: u32) -> bool {
    let own = object.sa == this;
    match (parameter, &object.what) {
        (Parameter::Special(IKE_SA_ALONE), What::Ike { .. }) => own,
        (Parameter::Special(IKE_SA_AND_CHILD_SAS), _) => own,
        (Parameter::Special(ALL_IKE_SAS), _) => true,
        (Parameter::Spi(SpiParameter::Ike(spi)), What::Ike { spis }) => *spi == spis.0 || *spi == spis.1,
        (Parameter::Spi(SpiParameter::IkePair(i, r)), What::Ike { spis }) => (*i, *r) == *spis,
        (Parameter::Spi(SpiParameter::Child(spi)), What::Child { spis, .. }) => {
            *spi == spis.0 || *spi == spis.1
        }
        (Parameter::Ip(ip), _) => has_address(object, ip),
        (Parameter::Mode(wanted), What::Child { mode, encap, .. }) => match wanted {
            1 => *mode == Mode::Tunnel,
            2 => *mode == Mode::Transport,
            3 => *mode == Mode::Tunnel && *encap,
            4 => *mode == Mode::Transport && *encap,
            _ => false,
        },
        (Parameter::Proto(1), What::Ike { .. }) | (Parameter::Proto(3), What::Child { .. }) => true,
        _ => false,
    }
}

fn has_address(object: &Object, ip: &IpParameter) -> bool {
    let outer = || object.halves.local.has(ip.addr) || object.halves.remote.has(ip.addr);
    let inner = || match &object.what {
        What::Child { ts_local, ts_remote, mode: Mode::Tunnel, .. } => {
            ts_local.iter().chain(ts_remote).any(|ts| ts.contains_addr(ip.addr))
        }
        _ => false,
    };
    match (ip.header, ip.inner) {
        (true, false) => outer(),
        (false, true) => inner(),
        _ => outer() || inner(),
    }
}

// ---- outer addresses -----------------------------------------------------------------------------------------------

/// The address that an action names, or the one that the request came from, with what is said about it.
fn outer(named: Option<&Named>, s: &Situation<'_>) -> Outer {
    match named {
        // A request that came from the very address tells its port as well.
        Some(n) if n.addr == s.source.ip() => Outer::described(s.source, n.mip.as_ref(), s.now),
        Some(n) => Outer::described(SocketAddr::new(n.addr, s.port), n.mip.as_ref(), s.now),
        None => Outer::new(s.source),
    }
}

/// An alternative address joins the list that this message makes.
fn additional(chosen: &mut [(usize, Object)], named: &Named, s: &Situation<'_>) -> Verdict {
    let new = outer(Some(named), s);
    if !(s.acceptable)(named.addr) {
        return Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES);
    }
    for (_, object) in chosen {
        if !fits_spd(object, named.addr) {
            return Verdict::Refused(NotifyType::DOES_NOT_FIT_SPD);
        }
        if !object.alternates.get_or_insert_default().add(new) {
            return Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES);
        }
    }
    Verdict::Done
}

/// In transport mode the outer address is the traffic selector, so that the policy has its say.
fn fits_spd(object: &Object, addr: IpAddr) -> bool {
    match &object.what {
        What::Child { mode: Mode::Transport, permitted, .. } => {
            permitted.iter().any(|ts| ts.contains_addr(addr))
        }
        _ => true,
    }
}

/// Gives a transport mode SA the selectors of its addresses: those of the old one, for each new one.
fn follow(object: &mut Object) {
    let remote: Vec<IpAddr> = object.halves.remote.iter().map(|o| o.addr.ip()).collect();
    if let What::Child { mode: Mode::Transport, ts_remote, .. } = &mut object.what {
        *ts_remote = hosts(ts_remote, &remote);
    }
}

/// The protocols and ports of `selectors` at each of `addrs`.
pub(in crate::ike) fn hosts(selectors: &[TrafficSelector], addrs: &[IpAddr]) -> Vec<TrafficSelector> {
    let mut out: Vec<TrafficSelector> = Vec::new();
    for addr in addrs {
        for ts in selectors {
            let host = TrafficSelector { start: *addr, end: *addr, ..*ts };
            if !out.contains(&host) {
                out.push(host);
            }
        }
    }
    out
}

fn update(
    chosen: &mut [(usize, Object)],
    old: Option<IpAddr>,
    new: Option<&Named>,
    s: &Situation<'_>,
) -> Verdict {
    let new = outer(new, s);
    if !(s.acceptable)(new.addr.ip()) {
        return Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES);
    }
    let replaces = old.map_or(Replaces::All, Replaces::One);
    let mut found = false;
    for (_, object) in chosen {
        let before: Vec<Outer> = object.halves.remote.iter().copied().collect();
        if !object.halves.remote.update(replaces, new) {
            continue;
        }
        if !fits_spd(object, new.addr.ip()) {
            return Verdict::Refused(NotifyType::DOES_NOT_FIT_SPD);
        }
        found = true;
        object.changed = true;
        let kept = object.halves.remote.clone();
        object.replaced.extend(before.into_iter().filter(|o| !kept.has(o.addr.ip())));
        follow(object);
    }
    if found { Verdict::Done } else { Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES) }
}

fn add(chosen: &mut [(usize, Object)], named: Option<&Named>, s: &Situation<'_>) -> Verdict {
    let new = outer(named, s);
    if !(s.acceptable)(new.addr.ip()) {
        return Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES);
    }
    // An IKE SA uses one address at a time and is passed over (MOBIKE-X 7.6).
    for (_, object) in chosen.iter_mut().filter(|(_, o)| !o.is_ike()) {
        if !fits_spd(object, new.addr.ip()) {
            return Verdict::Refused(NotifyType::DOES_NOT_FIT_SPD);
        }
        if !join(object, named, new, s) {
            return Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES);
        }
        object.changed = true;
        follow(object);
    }
    Verdict::Done
}

/// Adds an address to an SA. One without a name is known by its port too, where there are ports: a NAT may show several
/// addresses of the peer as one. `false` when there is no room.
fn join(object: &mut Object, named: Option<&Named>, new: Outer, s: &Situation<'_>) -> bool {
    let remote = &mut object.halves.remote;
    if named.is_some() || !matches!(object.what, What::Child { encap: true, .. }) {
        return remote.add(new);
    }
    let lost = |a: &SocketAddr| a.ip() == new.addr.ip() && (s.silent)(*a);
    let silent = remote.iter().map(|o| o.addr).find(lost).filter(|_| !remote.has_exactly(new.addr));
    silent.is_some_and(|old| remote.update(Replaces::Shown(old), new)) || remote.add_shown(new)
}

fn remove(chosen: &mut [(usize, Object)], addr: IpAddr) -> Verdict {
    let (mut found, mut closing) = (false, false);
    for (_, object) in chosen.iter_mut().filter(|(_, o)| !o.is_ike()) {
        if !object.halves.remote.has(addr) {
            continue;
        }
        found = true;
        if object.halves.remote.iter().all(|o| o.addr.ip() == addr) {
            (object.closing, closing) = (true, true);
        } else {
            object.halves.remote.remove(addr);
            object.changed = true;
            follow(object);
        }
    }
    match (found, closing) {
        (false, _) => Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES),
        (true, true) => Verdict::Closing,
        (true, false) => Verdict::Done,
    }
}

// ---- inner addresses -----------------------------------------------------------------------------------------------

enum Inner {
    Add(IpAddr),
    Remove(IpAddr),
    Replace(Option<IpAddr>, IpAddr),
}

/// Changes the peer's traffic selectors, within what a CREATE_CHILD_SA could have negotiated. Only selectors of
/// single addresses can be taken apart.
fn inner(chosen: &mut [(usize, Object)], change: Inner) -> Verdict {
    let (mut found, mut closing) = (false, false);
    for (_, object) in chosen.iter_mut().filter(|(_, o)| o.mode() == Some(Mode::Tunnel)) {
        let What::Child { ts_remote, permitted, .. } = &mut object.what else { continue };
        let single = |ts: &TrafficSelector| ts.start == ts.end;
        let (gone, new): (Vec<TrafficSelector>, Option<IpAddr>) = match change {
            Inner::Add(addr) => (Vec::new(), Some(addr)),
            Inner::Remove(addr) => {
                (ts_remote.iter().filter(|ts| single(ts) && ts.start == addr).copied().collect(), None)
            }
            Inner::Replace(old, addr) => {
                let wanted = |ts: &&TrafficSelector| single(ts) && old.is_none_or(|old| ts.start == old);
                (ts_remote.iter().filter(wanted).copied().collect(), Some(addr))
            }
        };
        if gone.is_empty() && !matches!(change, Inner::Add(_)) {
            continue;
        }
        found = true;
        let shape = if gone.is_empty() { ts_remote.clone() } else { gone.clone() };
        let mut next: Vec<TrafficSelector> =
            ts_remote.iter().filter(|ts| !gone.contains(ts)).copied().collect();
        if let Some(addr) = new {
            for ts in hosts(&shape, &[addr]) {
                if !permitted.iter().any(|allowed| allowed.covers(&ts)) {
                    return Verdict::Refused(NotifyType::DOES_NOT_FIT_SPD);
                }
                if !next.iter().any(|have| have.covers(&ts)) {
                    next.push(ts);
                }
            }
        }
        if next.is_empty() {
            (object.closing, closing) = (true, true);
            continue;
        }
        if next.len() > 2 * MAX_ADDRESSES {
            return Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES);
        }
        *ts_remote = next;
        object.changed = true;
    }
    match (found, closing) {
        (false, _) => Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES),
        (true, true) => Verdict::Closing,
        (true, false) => Verdict::Done,
    }
}

/// The one address of an IKE SA after an action, if it may be used now.
pub(in crate::ike) fn ike_address(half: &Half, now: Instant) -> Option<SocketAddr> {
    half.iter().find(|o| o.is_current(now)).map(|o| o.addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn at(text: &str) -> SocketAddr {
        SocketAddr::new(ip(text), 4500)
    }

    fn ts(text: &str) -> Vec<TrafficSelector> {
        text.split(' ').map(|t| t.parse().unwrap()).collect()
    }

    fn ike(sa: u32) -> Object {
        let spis = (IkeSpi(u64::from(sa)), IkeSpi(100 + u64::from(sa)));
        Object::new(sa, What::Ike { spis }, Halves::single(at("192.0.2.1"), at("198.51.100.1")))
    }

    fn child(sa: u32, id: u32, mode: Mode) -> Object {
        let transport = mode == Mode::Transport;
        let what = What::Child {
            id: ChildSaId(id),
            spis: (Spi(0x1000 + id), Spi(0x2000 + id)),
            mode,
            encap: true,
            ts_local: ts(if transport { "192.0.2.1" } else { "10.1.0.0/16" }),
            ts_remote: ts(if transport { "198.51.100.1[tcp/80]" } else { "10.2.0.5" }),
            permitted: ts(if transport { "198.51.100.0/24" } else { "10.2.0.0/16" }),
        };
        Object::new(sa, what, Halves::single(at("192.0.2.1"), at("198.51.100.1")))
    }

    fn objects() -> Vec<Object> {
        vec![
            ike(1),
            child(1, 1, Mode::Tunnel),
            child(1, 2, Mode::Transport),
            ike(2),
            child(2, 3, Mode::Tunnel),
        ]
    }

    fn action(kind: Kind) -> Action {
        Action { kind, check: false, id: None, selectors: None }
    }

    fn named(text: &str) -> Option<Named> {
        Some(Named { addr: ip(text), mip: None })
    }

    fn add_outer(text: &str) -> Action {
        action(Kind::Add { place: Place::Outer, addr: named(text) })
    }

    fn run(objects: &mut [Object], action: &Action) -> Verdict {
        let forbidden = ip("198.51.100.66");
        let situation = Situation {
            now: Instant::now(),
            sa: 1,
            source: "198.51.100.9:40000".parse().unwrap(),
            port: 4500,
            acceptable: &|addr| addr != forbidden,
            silent: &|addr| addr.port() == 7,
        };
        decide(objects, action, &situation)
    }

    fn remotes(object: &Object) -> Vec<String> {
        object.halves.remote.iter().map(|o| o.addr.to_string()).collect()
    }

    #[test]
    fn an_update_without_parameters_moves_the_ike_sa_and_all_its_children_at_once() {
        let mut objects = objects();
        let update = action(Kind::Update { place: Place::Outer, old: None, new: None });
        // 198.51.100.9 lies inside what the transport mode SA's policy permits.
        assert_eq!(run(&mut objects, &update), Verdict::Done);
        for object in &objects[..3] {
            assert_eq!(remotes(object), ["198.51.100.9:40000"]);
            assert_eq!(object.replaced.len(), 1);
        }
        assert_eq!(remotes(&objects[3]), ["198.51.100.1:4500"], "another IKE SA is out of reach");
        let What::Child { ts_remote, .. } = &objects[2].what else { panic!() };
        assert_eq!(ts_remote, &ts("198.51.100.9[tcp/80]"), "in transport mode the address is the selector");
    }

    #[test]
    fn m11_what_the_spd_does_not_permit_changes_nothing() {
        let (before, mut objects) = (objects(), objects());
        assert_eq!(
            run(&mut objects, &add_outer("203.0.113.1")),
            Verdict::Refused(NotifyType::DOES_NOT_FIT_SPD)
        );
        let forbidden = add_outer("198.51.100.66");
        assert_eq!(run(&mut objects, &forbidden), Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES));
        assert_eq!(objects, before);
    }

    #[test]
    fn add_passes_over_the_ike_sa_and_remove_of_the_last_closes() {
        let mut objects = objects();
        assert_eq!(run(&mut objects, &add_outer("198.51.100.2")), Verdict::Done);
        assert_eq!(remotes(&objects[0]), ["198.51.100.1:4500"]);
        assert_eq!(remotes(&objects[1]), ["198.51.100.1:4500", "198.51.100.2:4500"]);
        let remove = |text: &str| action(Kind::Remove { place: Place::Outer, addr: Some(ip(text)) });
        assert_eq!(
            run(&mut objects, &remove("198.51.100.7")),
            Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES)
        );
        assert_eq!(run(&mut objects, &remove("198.51.100.1")), Verdict::Done);
        let check = Action { check: true, ..remove("198.51.100.2") };
        let before = objects.clone();
        assert_eq!(run(&mut objects, &check), Verdict::Closing);
        assert_eq!(objects, before, "a check leaves everything as it was");
        assert_eq!(run(&mut objects, &remove("198.51.100.2")), Verdict::Closing);
        assert!(objects[1].closing && objects[2].closing && !objects[0].closing);
        assert_eq!(
            run(&mut objects, &add_outer("198.51.100.3")),
            Verdict::Done,
            "the IKE SA still matches, though nothing is left to add to"
        );
    }

    #[test]
    fn a_nat_may_show_two_addresses_as_one_with_two_ports() {
        let add = action(Kind::Add { place: Place::Outer, addr: None });
        let remote = |objects: &mut [Object], text: &str| {
            objects.iter_mut().for_each(|o| o.halves.remote = Half::single(text.parse().unwrap()));
        };
        let mut both = objects();
        remote(&mut both, "198.51.100.9:39999");
        assert_eq!(run(&mut both, &add), Verdict::Done);
        assert_eq!(remotes(&both[1]), ["198.51.100.9:39999", "198.51.100.9:40000"]);
        assert_eq!(run(&mut both, &add), Verdict::Done);
        assert_eq!(remotes(&both[1]).len(), 2, "once more changes nothing");

        // Where the peer is silent the NAT shows it elsewhere now; without UDP there are no ports.
        let mut silent = objects();
        remote(&mut silent, "198.51.100.9:7");
        let mut plain = objects();
        remote(&mut plain, "198.51.100.9:39999");
        if let What::Child { encap, .. } = &mut plain[1].what {
            *encap = false;
        }
        for mut objects in [silent, plain] {
            assert_eq!(run(&mut objects, &add), Verdict::Done);
            assert_eq!(remotes(&objects[1]), ["198.51.100.9:40000"]);
        }

        // With its name both go, and so does the SA.
        let remove = action(Kind::Remove { place: Place::Outer, addr: Some(ip("198.51.100.9")) });
        assert_eq!(run(&mut both, &remove), Verdict::Closing);
    }

    #[test]
    fn m7_selectors_reach_other_ike_sas_only_by_naming_them() {
        let objects = objects();
        let picked = |selectors: Vec<Vec<Parameter>>| {
            select(&objects, &Action { selectors: Some(selectors), ..add_outer("198.51.100.2") }, 1)
        };
        use Parameter::{Mode as M, Proto, Special, Spi as S};
        let h = |text: &str| Parameter::Ip(IpParameter::outer(ip(text)));
        let i = |text: &str| Parameter::Ip(IpParameter::inner_addr(ip(text)));
        for (selectors, expected) in [
            (vec![vec![Special(1)]], vec![0]),
            (vec![vec![Special(2)]], vec![0, 1, 2]),
            (vec![vec![Special(3)]], vec![0, 1, 2, 3, 4]),
            (vec![vec![S(SpiParameter::Child(Spi(0x1001)))]], vec![1]),
            (vec![vec![S(SpiParameter::Child(Spi(0x2001)))]], vec![1]),
            (vec![vec![S(SpiParameter::Child(Spi(0x2003)))]], vec![]),
            (vec![vec![Special(3), S(SpiParameter::Child(Spi(0x2003)))]], vec![4]),
            (vec![vec![S(SpiParameter::Ike(IkeSpi(102)))]], vec![3]),
            (vec![vec![S(SpiParameter::IkePair(IkeSpi(2), IkeSpi(102)))]], vec![3]),
            (vec![vec![S(SpiParameter::IkePair(IkeSpi(102), IkeSpi(2)))]], vec![]),
            (vec![vec![Proto(1)]], vec![0]),
            (vec![vec![Proto(2)]], vec![]),
            (vec![vec![Proto(3), M(2)]], vec![2]),
            (vec![vec![M(1)], vec![M(4)]], vec![1, 2]),
            (vec![vec![h("198.51.100.1")]], vec![0, 1, 2]),
            (vec![vec![h("192.0.2.1"), Proto(3)]], vec![1, 2]),
            (vec![vec![i("10.1.7.7")]], vec![1]),
            (vec![vec![i("198.51.100.1")]], vec![]),
            (vec![vec![h("10.1.7.7")]], vec![]),
        ] {
            assert_eq!(picked(selectors.clone()), expected, "{selectors:?}");
        }
        let mut objects = self::objects();
        let none = Action { selectors: Some(vec![vec![Proto(2)]]), ..add_outer("198.51.100.2") };
        assert_eq!(run(&mut objects, &none), Verdict::Refused(NotifyType::UNMATCHED_SELECTOR_SET));
    }

    #[test]
    fn m10_inner_addresses_stay_within_what_was_negotiable() {
        let mut objects = objects();
        let add = |text: &str| action(Kind::Add { place: Place::Inner, addr: named(text) });
        let selectors = |o: &Object| match &o.what {
            What::Child { ts_remote, .. } => ts_remote.iter().map(ToString::to_string).collect::<Vec<_>>(),
            What::Ike { .. } => vec![],
        };
        assert_eq!(run(&mut objects, &add("10.3.0.1")), Verdict::Refused(NotifyType::DOES_NOT_FIT_SPD));
        assert_eq!(run(&mut objects, &add("10.2.0.6")), Verdict::Done);
        assert_eq!(selectors(&objects[1]), ["10.2.0.5/32", "10.2.0.6/32"]);
        let update =
            action(Kind::Update { place: Place::Inner, old: Some(ip("10.2.0.5")), new: named("10.2.0.7") });
        assert_eq!(run(&mut objects, &update), Verdict::Done);
        assert_eq!(selectors(&objects[1]), ["10.2.0.6/32", "10.2.0.7/32"]);
        let remove = |text: &str| action(Kind::Remove { place: Place::Inner, addr: Some(ip(text)) });
        assert_eq!(
            run(&mut objects, &remove("10.2.0.9")),
            Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES)
        );
        assert_eq!(run(&mut objects, &remove("10.2.0.6")), Verdict::Done);
        assert_eq!(run(&mut objects, &remove("10.2.0.7")), Verdict::Closing);
        assert_eq!(remotes(&objects[1]), ["198.51.100.1:4500"]);
    }

    #[test]
    fn no_more_than_eight_addresses() {
        let mut objects = objects();
        for n in 2..=8 {
            assert_eq!(run(&mut objects, &add_outer(&format!("198.51.100.{n}"))), Verdict::Done);
        }
        let before = objects.clone();
        let ninth = run(&mut objects, &add_outer("198.51.100.20"));
        assert_eq!(ninth, Verdict::Refused(NotifyType::UNACCEPTABLE_ADDRESSES));
        assert_eq!(objects, before);
    }
}
