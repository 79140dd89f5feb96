//! Which version of MOBIKE an IKE SA speaks (RFC 4555 3.2; MOBIKE-X 5.6, 6.1, 6.2, 7.1): pure decisions over the
//! notifies of both sides.

use std::fmt;

use mobikex_common::wire::ike::{Notify, NotifyType, Payload};
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
/// 4.2.2 demands of its speakers.
pub(super) fn offer(versions: &[Version]) -> Option<Notify> {
    match versions {
        [] => None,
        [Version::Mobike] => Some(Notify::new(NotifyType::MOBIKE_SUPPORTED, Vec::new())),
        several => Some(naming(NotifyType::MOBIKE_SUPPORTED, several)),
    }
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
        // An initiator that names no version would not understand more than silence.
        Said::Plain => (Version::None, None),
        // Speakers of version 1 alone ignore the data (RFC 4555 4.2.2).
        Said::Numbers(_) | Said::Malformed if allowed == [Version::Mobike] => {
            (Version::Mobike, Some(Notify::new(NotifyType::MOBIKE_SUPPORTED, Vec::new())))
        }
        Said::Malformed if extended => {
            (Version::None, Some(Notify::new(NotifyType::UNACCEPTABLE_PARAMETER, Vec::new())))
        }
        Said::Malformed => (Version::None, None),
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
        let request: Vec<Payload> = offer(initiator).map(Payload::Notify).into_iter().collect();
        let (theirs, answer) = respond(responder, &request);
        let response: Vec<Payload> = answer.clone().map(Payload::Notify).into_iter().collect();
        let Outcome::Agreed(ours) = conclude(initiator, initiator, &response) else { panic!("a retry") };
        (ours, theirs, answer)
    }

    #[test]
    fn every_combination_ends_with_the_same_version_on_both_sides() {
        for initiator in SETS {
            for responder in SETS {
                let (ours, theirs, answer) = negotiate(initiator, responder);
                let common = initiator.iter().filter(|v| responder.contains(v)).max().copied();
                if initiator == [MobikeX] && responder == [Mobike] {
                    // NOTE 2 of MOBIKE-X 7.1.1: a speaker of version 1 cannot know that it was not wanted.
                    assert_eq!((ours, theirs), (Version::None, Mobike));
                    continue;
                }
                assert_eq!((ours, theirs), (common.unwrap_or_default(), common.unwrap_or_default()));
                let kind = answer.map(|a| a.kind);
                let named = initiator.contains(&MobikeX);
                assert_eq!(
                    kind,
                    match common {
                        Some(_) => Some(NotifyType::MOBIKE_SUPPORTED),
                        None if named => Some(NotifyType::MOBIKE_UNSUPPORTED_VERSION),
                        None => None,
                    },
                    "{initiator:?} {responder:?}"
                );
            }
        }
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
