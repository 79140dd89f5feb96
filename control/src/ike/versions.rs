//! Which version of MOBIKE an IKE SA speaks (RFC 4555 3.2; MOBIKE-X 5.6, 6.1, 6.2, 7.1): pure decisions over the
//! notifies of both sides.

use std::fmt;

use mobikex_common::wire::ike::{Notify, NotifyType, Payload, PayloadType};
use mobikex_common::wire::mobike_x::{self, Parameter, VERSION_MOBIKE, VERSION_MOBIKE_X, VERSION_NONE};
use serde::Serialize;

use super::rules::notify;
use crate::config::{Connection, MobikeX};

/// What both sides have agreed on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Version {
    /// Addresses do not change.
    #[default]
    None,
    /// RFC 4555.
    Mobike,
    /// MOBIKE-X.
    MobikeX,
}

impl Version {
    fn number(self) -> u8 {
        match self {
            Self::None => VERSION_NONE,
            Self::Mobike => VERSION_MOBIKE,
            Self::MobikeX => VERSION_MOBIKE_X,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        match number {
            VERSION_MOBIKE => Some(Self::Mobike),
            VERSION_MOBIKE_X => Some(Self::MobikeX),
            _ => None,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no MOBIKE",
            Self::Mobike => "MOBIKE",
            Self::MobikeX => "MOBIKE-X",
        })
    }
}

/// The versions that a connection's policy allows, lowest first.
pub(super) fn allowed(conn: &Connection) -> Vec<Version> {
    let mobike = conn.mobike.then_some(Version::Mobike).filter(|_| conn.mobike_x != MobikeX::Require);
    let extended = (conn.mobike_x != MobikeX::No).then_some(Version::MobikeX);
    mobike.into_iter().chain(extended).collect()
}

/// A notify of `kind` that names versions.
fn naming(kind: NotifyType, versions: &[Version]) -> Notify {
    let numbers = versions.iter().map(|v| v.number()).collect();
    Notify::new(kind, mobike_x::emit(&[Parameter::Version(numbers)]))
}

/// MOBIKE_SUPPORTED for a first offer; `None` when nothing is allowed. Plain MOBIKE goes without data, as RFC 4555
/// 4.2.2 demands of its speakers. `critical` asks a peer that has no MOBIKE to say so (MOBIKE-X 7.1.1).
pub(super) fn offer(versions: &[Version], critical: bool) -> Option<Notify> {
    let offer = match versions {
        [] => return None,
        [Version::Mobike] => Notify::new(NotifyType::MOBIKE_SUPPORTED, Vec::new()),
        several => naming(NotifyType::MOBIKE_SUPPORTED, several),
    };
    Some(Notify { critical, ..offer })
}

/// The answer to an offer that would not understand MOBIKE_UNSUPPORTED_VERSION: none, unless it asks for one with its
/// critical bit (MOBIKE-X 7.1.1).
fn decline(offer: &Notify) -> Option<Notify> {
    let kind = NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD;
    offer.critical.then(|| Notify::new(kind, vec![PayloadType::N.0]))
}

/// MOBIKE_UNSUPPORTED_VERSION with NONE: version 2 is off from here on (MOBIKE-X 7.1.2).
pub(super) fn none() -> Notify {
    naming(NotifyType::MOBIKE_UNSUPPORTED_VERSION, &[Version::None])
}

/// What a side says it speaks.
enum Said {
    /// Data is absent: version 1.
    Plain,
    /// A VERSION parameter, with numbers that may be unknown here.
    Numbers(Vec<u8>),
    /// Data that is no VERSION parameter.
    Malformed,
}

fn said(notify: &Notify) -> Said {
    if notify.data.is_empty() {
        return Said::Plain;
    }
    match mobike_x::parse(&notify.data).as_deref() {
        Ok([Parameter::Version(numbers)]) => Said::Numbers(numbers.clone()),
        // The draft permits several VERSION parameters in one notify (11.2.1).
        Ok(several) if several.iter().all(|p| matches!(p, Parameter::Version(_))) => Said::Numbers(
            several
                .iter()
                .flat_map(|p| if let Parameter::Version(v) = p { v.clone() } else { vec![] })
                .collect(),
        ),
        _ => Said::Malformed,
    }
}

/// The responder's choice, and what it answers (MOBIKE-X 7.1.1).
pub(super) fn respond(allowed: &[Version], payloads: &[Payload]) -> (Version, Option<Notify>) {
    let Some(offer) = notify(payloads, NotifyType::MOBIKE_SUPPORTED) else { return (Version::None, None) };
    let extended = allowed.contains(&Version::MobikeX);
    match said(offer) {
        Said::Plain if allowed.contains(&Version::Mobike) => {
            (Version::Mobike, Some(Notify::new(NotifyType::MOBIKE_SUPPORTED, Vec::new())))
        }
        Said::Plain => (Version::None, decline(offer)),
        // Speakers of version 1 alone ignore the data (RFC 4555 4.2.2).
        Said::Malformed if allowed == [Version::Mobike] => {
            (Version::Mobike, Some(Notify::new(NotifyType::MOBIKE_SUPPORTED, Vec::new())))
        }
        Said::Malformed if extended => {
            (Version::None, Some(Notify::new(NotifyType::UNACCEPTABLE_PARAMETER, Vec::new())))
        }
        Said::Malformed => (Version::None, decline(offer)),
        Said::Numbers(numbers) => {
            let both = allowed.iter().rev().find(|v| numbers.contains(&v.number()));
            match both {
                Some(version) => (*version, Some(naming(NotifyType::MOBIKE_SUPPORTED, &[*version]))),
                None if allowed.is_empty() => (Version::None, Some(none())),
                None => (Version::None, Some(naming(NotifyType::MOBIKE_UNSUPPORTED_VERSION, allowed))),
            }
        }
    }
}

/// What an initiator makes of the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Settled.
    Agreed(Version),
    /// The responder speaks this version, which we allow but have not offered: offer it (MOBIKE-X 7.1.2).
    Retry(Version),
}

/// The initiator's side of [`respond`]. `offered` is what was sent, `allowed` what policy permits.
pub(super) fn conclude(offered: &[Version], allowed: &[Version], payloads: &[Payload]) -> Outcome {
    let agreed =
        |version: Version| Outcome::Agreed(if offered.contains(&version) { version } else { Version::None });
    if notify(payloads, NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD).is_some() {
        return Outcome::Agreed(Version::None);
    }
    if let Some(answer) = notify(payloads, NotifyType::MOBIKE_SUPPORTED) {
        return match said(answer) {
            Said::Plain => agreed(Version::Mobike),
            Said::Numbers(numbers) => match numbers.as_slice() {
                [one] => agreed(Version::from_number(*one).unwrap_or_default()),
                _ => Outcome::Agreed(Version::None),
            },
            // Who was offered version 1 alone may put anything there (RFC 4555 4.2.2).
            Said::Malformed if offered == [Version::Mobike] => agreed(Version::Mobike),
            Said::Malformed => Outcome::Agreed(Version::None),
        };
    }
    if let Some(answer) = notify(payloads, NotifyType::MOBIKE_UNSUPPORTED_VERSION)
        && let Said::Numbers(numbers) = said(answer)
    {
        let retry = allowed.iter().rev().find(|v| numbers.contains(&v.number()) && !offered.contains(v));
        if let Some(version) = retry {
            return Outcome::Retry(*version);
        }
    }
    Outcome::Agreed(Version::None)
}

#[cfg(test)]
mod tests {
    use super::Version::{Mobike, MobikeX};
    use super::*;

    const SETS: [&[Version]; 4] = [&[], &[Mobike], &[MobikeX], &[Mobike, MobikeX]];

    fn negotiate(initiator: &[Version], responder: &[Version]) -> (Version, Version, Option<Notify>) {
        let request: Vec<Payload> = offer(initiator, false).map(Payload::Notify).into_iter().collect();
        let (theirs, answer) = respond(responder, &request);
        let response: Vec<Payload> = answer.clone().map(Payload::Notify).into_iter().collect();
        let Outcome::Agreed(ours) = conclude(initiator, initiator, &response) else { panic!("a retry") };
        (ours, theirs, answer)
    }

    #[test]
    fn every_combination_ends_with_the_same_version_on_both_sides() {
        let supported = |data: &[u8]| Some(Notify::new(NotifyType::MOBIKE_SUPPORTED, data.to_vec()));
        let refused = |data: &[u8]| Some(Notify::new(NotifyType::MOBIKE_UNSUPPORTED_VERSION, data.to_vec()));
        for initiator in SETS {
            for responder in SETS {
                let (ours, theirs, answer) = negotiate(initiator, responder);
                let common = initiator.iter().filter(|v| responder.contains(v)).max().copied();
                assert_eq!((ours, theirs), (common.unwrap_or_default(), common.unwrap_or_default()));
                // What stands in the answer, by MOBIKE-X 7.1.1.
                let expected = match (initiator, responder) {
                    ([], _) => None,
                    ([Mobike], [Mobike, ..]) => supported(&[]),
                    ([Mobike], _) => None,
                    (_, [.., MobikeX]) => supported(&[1, 1, 2, 0]),
                    ([Mobike, ..], [Mobike]) => supported(&[1, 1, 1, 0]),
                    (_, [Mobike]) => refused(&[1, 1, 1, 0]),
                    (_, _) => refused(&[1, 1, 255, 0]),
                };
                assert_eq!(answer, expected, "{initiator:?} {responder:?}");
            }
        }
        let alone = [Payload::Notify(naming(NotifyType::MOBIKE_SUPPORTED, &[Mobike]))];
        assert_eq!(respond(&[MobikeX], &alone), (Version::None, refused(&[1, 1, 2, 0])));
    }

    fn one(kind: NotifyType, data: &[u8]) -> Vec<Payload> {
        vec![Payload::Notify(Notify::new(kind, data.to_vec()))]
    }

    /// The figures of MOBIKE-X 7.1.3, `INIT` to `MOBIKE_SUPPORTED_SENT` and from there.
    #[test]
    fn the_initiators_diagram() {
        let both: &[Version] = &[Mobike, MobikeX];
        let sent = offer(both, true).unwrap();
        assert_eq!((sent.data, sent.critical), (vec![1, 2, 1, 2], true));
        let after = |payloads: &[Payload]| conclude(both, both, payloads);
        let (supported, unsupported) = (NotifyType::MOBIKE_SUPPORTED, NotifyType::MOBIKE_UNSUPPORTED_VERSION);
        let none = Outcome::Agreed(Version::None);
        for (answer, state) in [
            // "TIMEOUT": the response is there and says nothing.
            (vec![], none),
            (one(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, &[41]), none),
            (one(supported, &[]), Outcome::Agreed(Mobike)),
            (one(supported, &[1, 1, 1, 0]), Outcome::Agreed(Mobike)),
            (one(supported, &[1, 1, 2, 0]), Outcome::Agreed(MobikeX)),
            // A version that was not proposed.
            (one(supported, &[1, 1, 3, 0]), none),
            (one(unsupported, &[1, 1, 255, 0]), none),
            (one(unsupported, &[1, 1, 3, 0]), none),
            // The figure takes version 1 as agreed here. But the responder keeps nothing of a negotiation that it
            // refuses, as its own figure says, so that only a second offer can agree on it (7.1.2), and this
            // version was in the first.
            (one(unsupported, &[1, 1, 1, 0]), none),
        ] {
            assert_eq!(after(&answer), state, "{answer:?}");
        }
        let held_back = conclude(&[MobikeX], both, &one(unsupported, &[1, 1, 1, 0]));
        assert_eq!(held_back, Outcome::Retry(Mobike));
        assert_eq!(respond(&[Mobike], &[Payload::Notify(offer(&[Mobike], false).unwrap())]).0, Mobike);
    }

    /// The figure of MOBIKE-X 7.1.3, `INIT` to `MOBIKE*_SUPPORTED`.
    #[test]
    fn the_responders_diagram() {
        let both: &[Version] = &[Mobike, MobikeX];
        let plain = |critical| Notify { critical, ..Notify::new(NotifyType::MOBIKE_SUPPORTED, vec![]) };
        let offers = |numbers: &[u8]| {
            Notify::new(NotifyType::MOBIKE_SUPPORTED, mobike_x::emit(&[Parameter::Version(numbers.to_vec())]))
        };
        let after = |allowed: &[Version], offer: Notify| {
            let (version, answer) = respond(allowed, &[Payload::Notify(offer)]);
            (version, answer.map(|a| (a.kind, a.data)))
        };
        assert_eq!(respond(both, &one(NotifyType::COOKIE2, &[1; 8])), (Version::None, None));
        // No MOBIKE here: said only to who asks with the critical bit.
        let refusal = (NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![41]);
        assert_eq!(after(&[], plain(true)), (Version::None, Some(refusal.clone())));
        assert_eq!(after(&[], plain(false)), (Version::None, None));
        assert_eq!(after(&[MobikeX], plain(true)), (Version::None, Some(refusal)));
        // Version 1 alone, on either side.
        let version_1 = (NotifyType::MOBIKE_SUPPORTED, vec![]);
        assert_eq!(after(&[Mobike], plain(true)), (Mobike, Some(version_1.clone())));
        assert_eq!(after(both, plain(false)), (Mobike, Some(version_1)));
        // A version that is supported, the highest first; or none of them, and nothing is kept.
        let chosen = |number| Some((NotifyType::MOBIKE_SUPPORTED, vec![1, 1, number, 0]));
        assert_eq!(after(both, offers(&[1, 2, 9])), (MobikeX, chosen(2)));
        assert_eq!(after(both, offers(&[1])), (Mobike, chosen(1)));
        let supported = (NotifyType::MOBIKE_UNSUPPORTED_VERSION, vec![1, 2, 1, 2]);
        assert_eq!(after(both, offers(&[9])), (Version::None, Some(supported)));
    }

    #[test]
    fn none_is_no_version_to_offer_or_to_choose() {
        let both: &[Version] = &[Mobike, MobikeX];
        let none = Payload::Notify(naming(NotifyType::MOBIKE_SUPPORTED, &[Version::None]));
        let (version, answer) = respond(both, std::slice::from_ref(&none));
        assert_eq!((version, answer.unwrap().kind), (Version::None, NotifyType::MOBIKE_UNSUPPORTED_VERSION));
        assert_eq!(conclude(both, both, &[none]), Outcome::Agreed(Version::None));
        for versions in SETS {
            let named = offer(versions, false).map(|n| n.data).unwrap_or_default();
            assert!(!named.contains(&VERSION_NONE), "{named:?}");
        }
    }

    /// NOTE 2 of MOBIKE-X 7.1.1: a speaker of version 1 cannot know that it was not wanted.
    #[test]
    fn a_plain_answer_to_an_offer_of_version_2_alone_is_no_agreement() {
        let plain = one(NotifyType::MOBIKE_SUPPORTED, &[]);
        assert_eq!(conclude(&[MobikeX], &[MobikeX], &plain), Outcome::Agreed(Version::None));
    }

    #[test]
    fn a_version_that_was_held_back_is_offered_once_the_responder_asks_for_it() {
        let answer = [Payload::Notify(naming(NotifyType::MOBIKE_UNSUPPORTED_VERSION, &[Mobike]))];
        assert_eq!(conclude(&[MobikeX], &[Mobike, MobikeX], &answer), Outcome::Retry(Mobike));
        assert_eq!(conclude(&[MobikeX], &[MobikeX], &answer), Outcome::Agreed(Version::None));
        assert_eq!(
            conclude(&[MobikeX], &[Mobike, MobikeX], &[Payload::Notify(none())]),
            Outcome::Agreed(Version::None)
        );
    }

    #[test]
    fn what_was_not_offered_is_not_agreed() {
        let answer = |versions: &[Version]| [Payload::Notify(naming(NotifyType::MOBIKE_SUPPORTED, versions))];
        assert_eq!(conclude(&[Mobike], &[Mobike], &answer(&[MobikeX])), Outcome::Agreed(Version::None));
        assert_eq!(
            conclude(&[Mobike, MobikeX], &[Mobike, MobikeX], &answer(&[Mobike, MobikeX])),
            Outcome::Agreed(Version::None)
        );
    }

    #[test]
    fn a_malformed_offer_is_refused_by_name_unless_only_version_1_is_spoken() {
        let offer = [Payload::Notify(Notify::new(NotifyType::MOBIKE_SUPPORTED, vec![1, 0, 0, 0]))];
        let (version, answer) = respond(&[Mobike, MobikeX], &offer);
        assert_eq!((version, answer.unwrap().kind), (Version::None, NotifyType::UNACCEPTABLE_PARAMETER));
        assert_eq!(respond(&[Mobike], &offer).0, Mobike);
    }
}
