//! Which payloads each message must have, at most once: one row per message (RFC 7296 1.2, 1.3, 1.4), checked
//! before any handler runs.

use mobikex_common::wire::ike::{
    AuthPayload, ExchangeType, Identification, Notify, NotifyType, Payload, PayloadType, Proposal,
};

use super::error::IkeError;

struct Rule {
    exchange: ExchangeType,
    response: bool,
    required: &'static [PayloadType],
    story: &'static str,
}

/// CREATE_CHILD_SA and INFORMATIONAL carry several forms; their handlers ask for what each form needs.
const RULES: &[Rule] = &[
    Rule {
        exchange: ExchangeType::IKE_SA_INIT,
        response: false,
        required: &[PayloadType::SA, PayloadType::KE, PayloadType::NONCE],
        story: "the request needs SA, KE and Ni, once each",
    },
    Rule {
        exchange: ExchangeType::IKE_SA_INIT,
        response: true,
        required: &[PayloadType::SA, PayloadType::KE, PayloadType::NONCE],
        story: "the response needs SA, KE and Nr, once each",
    },
    Rule {
        exchange: ExchangeType::IKE_AUTH,
        response: false,
        required: &[PayloadType::IDI, PayloadType::AUTH],
        story: "the request needs IDi and AUTH, once each",
    },
    Rule {
        exchange: ExchangeType::IKE_AUTH,
        response: true,
        required: &[PayloadType::IDR, PayloadType::AUTH],
        story: "the response needs IDr and AUTH, once each",
    },
    Rule {
        exchange: ExchangeType::CREATE_CHILD_SA,
        response: false,
        required: &[PayloadType::SA, PayloadType::NONCE],
        story: "the request needs SA and Ni, once each",
    },
    Rule {
        exchange: ExchangeType::CREATE_CHILD_SA,
        response: true,
        required: &[PayloadType::SA, PayloadType::NONCE],
        story: "the response needs SA and Nr, once each",
    },
];

/// Payloads that may stand in a message at most once, whatever the exchange.
const SINGLE: &[PayloadType] = &[
    PayloadType::SA,
    PayloadType::KE,
    PayloadType::IDI,
    PayloadType::IDR,
    PayloadType::AUTH,
    PayloadType::EAP,
    PayloadType::NONCE,
    PayloadType::TSI,
    PayloadType::TSR,
];

const MOBILITY_ERRORS: [NotifyType; 2] =
    [NotifyType::MOBIKE_UNSUPPORTED_VERSION, NotifyType::UNACCEPTABLE_PARAMETER];

fn count(payloads: &[Payload], kind: PayloadType) -> usize {
    payloads.iter().filter(|p| p.kind() == kind).count()
}

/// Checks that nothing is doubled that may stand only once.
pub(super) fn check_single(exchange: &'static str, payloads: &[Payload]) -> Result<(), IkeError> {
    if SINGLE.iter().any(|kind| count(payloads, *kind) > 1) {
        return Err(IkeError::Rule { exchange, story: "a payload that may stand only once is doubled" });
    }
    Ok(())
}

/// Checks the row of a message.
pub(super) fn check(exchange: ExchangeType, response: bool, payloads: &[Payload]) -> Result<(), IkeError> {
    let name = exchange.name().unwrap_or("an unknown exchange");
    check_single(name, payloads)?;
    let of_child = [PayloadType::SA, PayloadType::TSI, PayloadType::TSR];
    if exchange == ExchangeType::IKE_AUTH
        && !response
        && !matches!(of_child.iter().filter(|kind| count(payloads, **kind) > 0).count(), 0 | 3)
    {
        return Err(IkeError::Rule {
            exchange: name,
            story: "of SA, TSi and TSr the request needs all or none",
        });
    }
    match RULES.iter().find(|r| r.exchange == exchange && r.response == response) {
        Some(rule) if rule.required.iter().any(|kind| count(payloads, *kind) == 0) => {
            Err(IkeError::Rule { exchange: name, story: rule.story })
        }
        _ => Ok(()),
    }
}

/// The first payload that `pick` recognises.
pub(super) fn find<'a, T>(payloads: &'a [Payload], pick: impl Fn(&'a Payload) -> Option<T>) -> Option<T> {
    payloads.iter().find_map(pick)
}

/// The SA payload.
pub(super) fn proposals(payloads: &[Payload]) -> Option<&[Proposal]> {
    find(payloads, |p| if let Payload::Sa(proposals) = p { Some(proposals.as_slice()) } else { None })
}

/// The nonce.
pub(super) fn nonce(payloads: &[Payload]) -> Option<&Vec<u8>> {
    find(payloads, |p| if let Payload::Nonce(nonce) = p { Some(nonce) } else { None })
}

/// Method and public value of the KE payload.
pub(super) fn key_exchange(payloads: &[Payload]) -> Option<(u16, &[u8])> {
    find(
        payloads,
        |p| if let Payload::Ke { method, data } = p { Some((*method, data.as_slice())) } else { None },
    )
}

/// The AUTH payload.
pub(super) fn auth(payloads: &[Payload]) -> Option<&AuthPayload> {
    find(payloads, |p| if let Payload::Auth(auth) = p { Some(auth) } else { None })
}

/// The EAP packet.
pub(super) fn eap(payloads: &[Payload]) -> Option<&[u8]> {
    find(payloads, |p| if let Payload::Eap(packet) = p { Some(packet.as_slice()) } else { None })
}

/// The identity of the initiator.
pub(super) fn id_i(payloads: &[Payload]) -> Option<&Identification> {
    find(payloads, |p| if let Payload::IdI(id) = p { Some(id) } else { None })
}

/// The identity of the responder.
pub(super) fn id_r(payloads: &[Payload]) -> Option<&Identification> {
    find(payloads, |p| if let Payload::IdR(id) = p { Some(id) } else { None })
}

/// The number of the method that an INVALID_KE_PAYLOAD asks for (RFC 7296 1.2).
pub(super) fn wanted_method(notify: &Notify) -> Option<u16> {
    notify.data.as_slice().try_into().ok().map(u16::from_be_bytes)
}

/// The first notify of a kind.
pub(super) fn notify(payloads: &[Payload], kind: NotifyType) -> Option<&Notify> {
    find(payloads, |p| match p {
        Payload::Notify(n) if n.kind == kind => Some(n),
        _ => None,
    })
}

/// The first error notify (types below 16384, RFC 7296 3.10.1) that concerns the exchange itself: those of MOBIKE-X
/// only say that addresses will stay as they are.
pub(super) fn error_notify(payloads: &[Payload]) -> Option<&Notify> {
    find(payloads, |p| match p {
        Payload::Notify(n) if n.kind.is_error() && !MOBILITY_ERRORS.contains(&n.kind) => Some(n),
        _ => None,
    })
}

/// Whether an error notify is about what IKE_AUTH sets up besides the IKE SA, which stands all the same (RFC 7296 1.2).
pub(super) fn is_of_child(kind: NotifyType) -> bool {
    [
        NotifyType::NO_PROPOSAL_CHOSEN,
        NotifyType::TS_UNACCEPTABLE,
        NotifyType::SINGLE_PAIR_REQUIRED,
        NotifyType::INTERNAL_ADDRESS_FAILURE,
        NotifyType::FAILED_CP_REQUIRED,
        NotifyType::NO_ADDITIONAL_SAS,
        NotifyType::TS_MAX_QUEUE,
    ]
    .contains(&kind)
}

/// The first unknown payload that demands to be understood (RFC 7296 2.5).
pub(super) fn unknown_critical(payloads: &[Payload]) -> Option<PayloadType> {
    find(payloads, |p| match p {
        Payload::Unknown { kind, critical: true, .. } => Some(*kind),
        _ => None,
    })
}

/// `[ SA KE No N(NATD_S_IP) ]` for the log.
pub(super) fn show(payloads: &[Payload]) -> String {
    let words: Vec<String> = payloads.iter().map(Payload::summary).collect();
    format!("[ {} ]", words.join(" "))
}
