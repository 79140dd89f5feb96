//! From the notifies of a message to its actions: the SELECTOR_SET as a state machine (MOBIKE-X 8, 9; the diagram
//! of 9 decides where the text of 8 says otherwise).

use std::collections::BTreeSet;
use std::net::IpAddr;

use mobikex_common::wire::ike::{Notify, NotifyType, Payload};
use mobikex_common::wire::mobike_x::{self, IpParameter, Mip, Parameter};

/// Actions, and SELECTORs, that a message may hold.
const MAX_ACTIONS: usize = 16;

/// Where in an SA an address stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::ike) enum Place {
    /// H: what packets are sent between.
    Outer,
    /// I: inside the tunnel.
    Inner,
}

/// An address with what its owner says about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::ike) struct Named {
    pub(in crate::ike) addr: IpAddr,
    pub(in crate::ike) mip: Option<Mip>,
}

/// What is asked for. `None` for an address stands for the one that the request came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::ike) enum Kind {
    /// `old` is replaced; `None` stands for all.
    Update {
        place: Place,
        old: Option<IpAddr>,
        new: Option<Named>,
    },
    Add {
        place: Place,
        addr: Option<Named>,
    },
    Remove {
        place: Place,
        addr: Option<IpAddr>,
    },
    /// An alternative address of the peer.
    Additional(Named),
}

/// One action of a message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::ike) struct Action {
    pub(in crate::ike) kind: Kind,
    /// Only to be judged (MOBIKE-X 5.3).
    pub(in crate::ike) check: bool,
    pub(in crate::ike) id: Option<u16>,
    /// `None` for the default of the action.
    pub(in crate::ike) selectors: Option<Vec<Vec<Parameter>>>,
}

impl Action {
    /// Whether it moves the peer to where the message comes from, without naming that.
    pub(in crate::ike) fn moves_to_source(&self) -> bool {
        !self.check && matches!(self.kind, Kind::Update { place: Place::Outer, new: None, .. })
    }
}

/// What a message asks for, and what of it is refused already.
#[derive(Default, Debug)]
pub(in crate::ike) struct Parsed {
    pub(in crate::ike) actions: Vec<Action>,
    pub(in crate::ike) refusals: Vec<Notify>,
}

/// A notify that answers the one with `id` (MOBIKE-X 10).
pub(in crate::ike) fn answer(kind: NotifyType, id: Option<u16>) -> Notify {
    let id: Vec<Parameter> = id.map(Parameter::Id).into_iter().collect();
    Notify::new(kind, mobike_x::emit(&id))
}

#[derive(PartialEq)]
enum State {
    Null,
    Start,
    Established,
}

pub(in crate::ike) fn is_action(kind: NotifyType) -> bool {
    [
        NotifyType::UPDATE_SA_ADDRESSES,
        NotifyType::ADD_SA_ADDRESS,
        NotifyType::REMOVE_SA_ADDRESS,
        NotifyType::ADDITIONAL_IP6_ADDRESS,
    ]
    .contains(&kind)
}

/// Walks through a message.
pub(in crate::ike) fn parse(payloads: &[Payload]) -> Parsed {
    let mut parsed = Parsed::default();
    let (mut state, mut error) = (State::Null, false);
    let mut set: Vec<Vec<Parameter>> = Vec::new();
    let mut ids = BTreeSet::new();
    let (mut actions, mut selectors) = (0, 0);
    for payload in payloads {
        let notify = match payload {
            Payload::Notify(notify) => notify,
            _ => {
                interrupt(&mut state, &mut error, &mut parsed);
                continue;
            }
        };
        if notify.kind == NotifyType::SELECTOR {
            if state == State::Established {
                set.clear();
                error = false;
            } else if state == State::Null {
                set.clear();
            }
            state = State::Start;
            selectors += 1;
            match selector(notify) {
                Ok((parameters, id)) if selectors <= MAX_ACTIONS && unique(&mut ids, id) => {
                    set.push(parameters)
                }
                Ok((_, id)) | Err(id) => {
                    error = true;
                    parsed.refusals.push(answer(NotifyType::UNACCEPTABLE_PARAMETER, id));
                }
            }
        } else if notify.kind == NotifyType::END_OF_SELECTOR {
            state = State::Null;
            error = false;
        } else if is_action(notify.kind) {
            if state == State::Start {
                state = State::Established;
            }
            actions += 1;
            let current = (state == State::Established).then(|| set.clone());
            match action(notify) {
                Ok(mut action) if !error && actions <= MAX_ACTIONS && unique(&mut ids, action.id) => {
                    action.selectors = current;
                    parsed.actions.push(action);
                }
                Ok(Action { id, .. }) | Err(id) => {
                    parsed.refusals.push(answer(NotifyType::UNACCEPTABLE_PARAMETER, id));
                }
            }
        } else {
            interrupt(&mut state, &mut error, &mut parsed);
        }
    }
    parsed
}

/// Anything but a SELECTOR, its end and an action.
fn interrupt(state: &mut State, error: &mut bool, parsed: &mut Parsed) {
    if *state == State::Start {
        *error = true;
        parsed.refusals.push(answer(NotifyType::UNEXPECTED_PAYLOAD_AFTER_SELECTOR, None));
    } else {
        *state = State::Null;
        *error = false;
    }
}

fn unique(ids: &mut BTreeSet<u16>, id: Option<u16>) -> bool {
    id.is_none_or(|id| ids.insert(id))
}

/// Parameters without their ID, of which there may be one.
fn without_id(notify: &Notify) -> Result<(Vec<Parameter>, Option<u16>), Option<u16>> {
    let parameters = mobike_x::parse(&notify.data).map_err(|error| error.id)?;
    let found: Vec<u16> =
        parameters.iter().filter_map(|p| if let Parameter::Id(id) = p { Some(*id) } else { None }).collect();
    let id = found.first().copied();
    if found.len() > 1 {
        return Err(id);
    }
    Ok((parameters.into_iter().filter(|p| !matches!(p, Parameter::Id(_))).collect(), id))
}

fn selector(notify: &Notify) -> Result<(Vec<Parameter>, Option<u16>), Option<u16>> {
    let (parameters, id) = without_id(notify)?;
    let known = |p: &Parameter| match p {
        Parameter::Special(value) => {
            [mobike_x::IKE_SA_ALONE, mobike_x::IKE_SA_AND_CHILD_SAS, mobike_x::ALL_IKE_SAS].contains(value)
        }
        Parameter::Mode(mode) => (1..=4).contains(mode),
        Parameter::Proto(protocol) => (1..=3).contains(protocol),
        Parameter::Version(_) => false,
        _ => true,
    };
    // One that names nothing would match everything by accident.
    if parameters.is_empty() || !parameters.iter().all(known) {
        return Err(id);
    }
    Ok((parameters, id))
}

fn place(ip: &IpParameter) -> Option<Place> {
    match (ip.header, ip.inner) {
        (true, false) => Some(Place::Outer),
        (false, true) => Some(Place::Inner),
        _ => None,
    }
}

fn named(ip: &IpParameter) -> Named {
    Named { addr: ip.addr, mip: ip.mip }
}

fn action(notify: &Notify) -> Result<Action, Option<u16>> {
    let (parameters, id) = without_id(notify)?;
    let mut ips = Vec::new();
    for parameter in &parameters {
        match parameter {
            Parameter::Ip(ip) => ips.push(ip),
            _ => return Err(id),
        }
    }
    let (kind, check) = match notify.kind {
        NotifyType::UPDATE_SA_ADDRESSES => update(&ips),
        NotifyType::ADD_SA_ADDRESS => one_at_most(&ips).map(|ip| match ip {
            Some((ip, place)) => (Kind::Add { place, addr: Some(named(ip)) }, ip.check),
            None => (Kind::Add { place: Place::Outer, addr: None }, false),
        }),
        NotifyType::REMOVE_SA_ADDRESS => one_at_most(&ips).map(|ip| match ip {
            Some((ip, place)) => (Kind::Remove { place, addr: Some(ip.addr) }, ip.check),
            None => (Kind::Remove { place: Place::Outer, addr: None }, false),
        }),
        // H is taken for granted here (MOBIKE-X 11.4.3).
        _ => match ips.as_slice() {
            [ip] => Some((Kind::Additional(named(ip)), ip.check)),
            _ => None,
        },
    }
    .ok_or(id)?;
    Ok(Action { kind, check, id, selectors: None })
}

#[allow(clippy::option_option)] // No address is a form of its own.
fn one_at_most<'a>(ips: &[&'a IpParameter]) -> Option<Option<(&'a IpParameter, Place)>> {
    match ips {
        [] => Some(None),
        [ip] => place(ip).map(|place| Some((*ip, place))),
        _ => None,
    }
}

/// The five cases of MOBIKE-X 7.4.
fn update(ips: &[&IpParameter]) -> Option<(Kind, bool)> {
    match ips {
        [] => Some((Kind::Update { place: Place::Outer, old: None, new: None }, false)),
        [ip] => {
            let place = place(ip)?;
            match (ip.old, ip.new) {
                (true, false) => Some((Kind::Update { place, old: Some(ip.addr), new: None }, ip.check)),
                (false, true) => Some((Kind::Update { place, old: None, new: Some(named(ip)) }, ip.check)),
                _ => None,
            }
        }
        [a, b] => {
            let (old, new) = match ((a.old, a.new), (b.old, b.new)) {
                ((true, false), (false, true)) => (a, b),
                ((false, true), (true, false)) => (b, a),
                _ => return None,
            };
            let place = place(old).filter(|p| Some(*p) == self::place(new) && old.check == new.check)?;
            Some((Kind::Update { place, old: Some(old.addr), new: Some(named(new)) }, old.check))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobikex_common::wire::mobike_x::{IKE_SA_ALONE, IKE_SA_AND_CHILD_SAS};

    fn payload(kind: NotifyType, parameters: &[Parameter]) -> Payload {
        Payload::Notify(Notify::new(kind, mobike_x::emit(parameters)))
    }

    fn ip(text: &str) -> IpParameter {
        IpParameter::outer(text.parse().unwrap())
    }

    fn old(text: &str) -> IpParameter {
        IpParameter { old: true, ..ip(text) }
    }

    fn new(text: &str) -> IpParameter {
        IpParameter { new: true, ..ip(text) }
    }

    fn add(text: &str, id: u16) -> Payload {
        payload(NotifyType::ADD_SA_ADDRESS, &[Parameter::Ip(ip(text)), Parameter::Id(id)])
    }

    fn one_update(ips: &[IpParameter]) -> Option<Action> {
        let parameters: Vec<_> = ips.iter().copied().map(Parameter::Ip).collect();
        let parsed = parse(&[payload(NotifyType::UPDATE_SA_ADDRESSES, &parameters)]);
        assert_eq!(parsed.actions.len() + parsed.refusals.len(), 1);
        parsed.actions.into_iter().next()
    }

    #[test]
    fn the_forms_of_update() {
        let addr = |text: &str| -> IpAddr { text.parse().unwrap() };
        let kind = |ips: &[IpParameter]| one_update(ips).map(|a| a.kind);
        let outer = |old: Option<&str>, new: Option<&str>| Kind::Update {
            place: Place::Outer,
            old: old.map(addr),
            new: new.map(|n| Named { addr: addr(n), mip: None }),
        };
        assert_eq!(kind(&[]), Some(outer(None, None)));
        assert_eq!(kind(&[old("192.0.2.1")]), Some(outer(Some("192.0.2.1"), None)));
        assert_eq!(kind(&[new("192.0.2.2")]), Some(outer(None, Some("192.0.2.2"))));
        let both = Some(outer(Some("192.0.2.1"), Some("192.0.2.2")));
        assert_eq!(kind(&[old("192.0.2.1"), new("192.0.2.2")]), both);
        assert_eq!(kind(&[new("192.0.2.2"), old("192.0.2.1")]), both, "their order does not matter");

        let check = |ip: IpParameter| IpParameter { check: true, ..ip };
        let inner = |ip: IpParameter| IpParameter { header: false, inner: true, ..ip };
        for bad in [
            vec![ip("192.0.2.1")],
            vec![IpParameter { old: true, ..new("192.0.2.1") }],
            vec![old("192.0.2.1"), old("192.0.2.2")],
            vec![new("192.0.2.1"), new("192.0.2.2")],
            vec![check(old("192.0.2.1")), new("192.0.2.2")],
            vec![inner(old("192.0.2.1")), new("192.0.2.2")],
            vec![IpParameter { header: false, ..new("192.0.2.2") }],
            vec![old("192.0.2.1"), new("192.0.2.2"), new("192.0.2.3")],
        ] {
            assert_eq!(kind(&bad), None, "{bad:?}");
        }
        assert!(one_update(&[check(old("192.0.2.1")), check(new("192.0.2.2"))]).unwrap().check);
    }

    #[test]
    fn a_selector_set_stays_until_its_end() {
        let alone = payload(NotifyType::SELECTOR, &[Parameter::Special(IKE_SA_ALONE)]);
        let whole = payload(NotifyType::SELECTOR, &[Parameter::Special(IKE_SA_AND_CHILD_SAS)]);
        let end = payload(NotifyType::END_OF_SELECTOR, &[]);
        let parsed = parse(&[
            add("192.0.2.1", 1),
            alone.clone(),
            whole.clone(),
            add("192.0.2.2", 2),
            add("192.0.2.3", 3),
            end,
            add("192.0.2.4", 4),
            whole,
            add("192.0.2.5", 5),
            alone,
            add("192.0.2.6", 6),
            // Established: something else brings the default back without an error.
            payload(NotifyType::COOKIE2, &[]),
            add("192.0.2.7", 7),
        ]);
        assert!(parsed.refusals.is_empty(), "{:?}", parsed.refusals);
        let sizes: Vec<_> = parsed.actions.iter().map(|a| a.selectors.as_ref().map(Vec::len)).collect();
        assert_eq!(sizes, [None, Some(2), Some(2), None, Some(1), Some(1), None]);
    }

    #[test]
    fn an_error_spoils_the_actions_up_to_the_end_of_the_set() {
        let good = payload(NotifyType::SELECTOR, &[Parameter::Special(IKE_SA_ALONE)]);
        let bad = payload(NotifyType::SELECTOR, &[Parameter::Special(9), Parameter::Id(70)]);
        let end = payload(NotifyType::END_OF_SELECTOR, &[]);
        let parsed = parse(&[
            good.clone(),
            payload(NotifyType::COOKIE2, &[]),
            add("192.0.2.1", 1),
            end,
            bad,
            add("192.0.2.2", 2),
            good,
            add("192.0.2.3", 3),
        ]);
        let ids: Vec<_> = parsed.actions.iter().map(|a| a.id).collect();
        assert_eq!(ids, [Some(3)]);
        let refused: Vec<_> = parsed
            .refusals
            .iter()
            .map(|n| (n.kind, mobike_x::parse(&n.data).unwrap().first().cloned()))
            .collect();
        let parameter = NotifyType::UNACCEPTABLE_PARAMETER;
        assert_eq!(
            refused,
            [
                (NotifyType::UNEXPECTED_PAYLOAD_AFTER_SELECTOR, None),
                (parameter, Some(Parameter::Id(1))),
                (parameter, Some(Parameter::Id(70))),
                (parameter, Some(Parameter::Id(2))),
            ]
        );
    }

    #[test]
    fn add_and_remove_ignore_o_and_n() {
        for kind in [NotifyType::ADD_SA_ADDRESS, NotifyType::REMOVE_SA_ADDRESS] {
            let read = |ip: IpParameter| parse(&[payload(kind, &[Parameter::Ip(ip)])]).actions;
            let plain = read(ip("192.0.2.1"));
            assert_eq!(plain.len(), 1);
            for odd in [old("192.0.2.1"), new("192.0.2.1"), IpParameter { old: true, ..new("192.0.2.1") }] {
                assert_eq!(read(odd), plain, "{odd:?}");
            }
        }
    }

    #[test]
    fn an_unknown_notify_spoils_a_set_that_is_being_built_and_reading_goes_on() {
        let alone = payload(NotifyType::SELECTOR, &[Parameter::Special(IKE_SA_ALONE)]);
        let unknown = payload(NotifyType(50_000), &[]);
        let parsed = parse(&[
            alone,
            unknown.clone(),
            add("192.0.2.1", 1),
            payload(NotifyType::END_OF_SELECTOR, &[]),
            unknown,
            add("192.0.2.2", 2),
        ]);
        assert_eq!(parsed.actions.iter().map(|a| a.id).collect::<Vec<_>>(), [Some(2)]);
        let refused: Vec<_> = parsed.refusals.iter().map(|n| n.kind).collect();
        assert_eq!(
            refused,
            [NotifyType::UNEXPECTED_PAYLOAD_AFTER_SELECTOR, NotifyType::UNACCEPTABLE_PARAMETER]
        );
    }

    #[test]
    fn a_selector_names_something_to_select_by() {
        let named = [Parameter::Special(IKE_SA_ALONE), Parameter::Id(3)];
        for (parameters, selects) in [(&named[..], true), (&named[1..], false), (&[], false)] {
            let parsed = parse(&[payload(NotifyType::SELECTOR, parameters), add("192.0.2.1", 1)]);
            assert_eq!(!parsed.actions.is_empty(), selects, "{parameters:?}");
            assert_eq!(parsed.refusals.len(), if selects { 0 } else { 2 });
        }
    }

    #[test]
    fn identifiers_are_unique_and_there_are_at_most_sixteen_actions() {
        let parsed = parse(&[add("192.0.2.1", 1), add("192.0.2.2", 1)]);
        assert_eq!((parsed.actions.len(), parsed.refusals.len()), (1, 1));
        let many: Vec<_> = (0..20).map(|n| add("192.0.2.1", n)).collect();
        let parsed = parse(&many);
        assert_eq!((parsed.actions.len(), parsed.refusals.len()), (16, 4));
        let two = [Parameter::Ip(ip("192.0.2.1")), Parameter::Id(1), Parameter::Id(2)];
        assert_eq!(parse(&[payload(NotifyType::ADD_SA_ADDRESS, &two)]).refusals.len(), 1);
    }
}
