//! Proposals on the wire and the choice among them (RFC 7296 2.7, 3.3).

use mobikex_common::alg::{Cipher, EspSuite, IkeSuite, Integrity, KeyExchange, Prf, TransformType};
use mobikex_common::proposal::{EspProposal, IkeProposal};
use mobikex_common::wire::ike::{Proposal, ProtocolId, Transform};

fn transform(kind: TransformType, id: u16, key_bits: Option<u16>) -> Transform {
    Transform { kind, id, key_bits, other_attributes: Vec::new() }
}

fn cipher_transforms(ciphers: &[Cipher]) -> impl Iterator<Item = Transform> + '_ {
    ciphers.iter().map(|c| {
        let (id, key_bits) = c.transform();
        transform(TransformType::ENCR, id, key_bits)
    })
}

fn integrity_transforms(integrity: &[Integrity]) -> impl Iterator<Item = Transform> + '_ {
    integrity.iter().map(|i| transform(TransformType::INTEG, i.transform(), None))
}

/// What we offer for an IKE SA. `spi` is empty in IKE_SA_INIT and our new SPI when rekeying.
pub(super) fn offer_ike(proposals: &[IkeProposal], spi: &[u8]) -> Vec<Proposal> {
    proposals
        .iter()
        .enumerate()
        .map(|(index, p)| Proposal {
            number: index as u8 + 1,
            protocol: ProtocolId::IKE,
            spi: spi.to_vec(),
            transforms: cipher_transforms(&p.ciphers)
                .chain(p.prfs.iter().map(|f| transform(TransformType::PRF, f.transform(), None)))
                .chain(integrity_transforms(&p.integrity))
                .chain(p.kes.iter().map(|k| transform(TransformType::KE, k.transform(), None)))
                .collect(),
        })
        .collect()
}

/// What we offer for a Child SA; without `with_ke` (IKE_AUTH) no key exchange is named (RFC 7296 1.2).
pub(super) fn offer_esp(proposals: &[EspProposal], spi: &[u8], with_ke: bool) -> Vec<Proposal> {
    proposals
        .iter()
        .enumerate()
        .map(|(index, p)| {
            let kes: &[KeyExchange] = if with_ke { &p.kes } else { &[] };
            Proposal {
                number: index as u8 + 1,
                protocol: ProtocolId::ESP,
                spi: spi.to_vec(),
                transforms: cipher_transforms(&p.ciphers)
                    .chain(integrity_transforms(&p.integrity))
                    .chain(kes.iter().map(|k| transform(TransformType::KE, k.transform(), None)))
                    .chain(p.esn.iter().map(|e| transform(TransformType::ESN, u16::from(*e), None)))
                    .collect(),
            }
        })
        .collect()
}

/// The transforms of one type that a peer proposes.
fn of_kind(proposal: &Proposal, kind: TransformType) -> impl Iterator<Item = &Transform> {
    // A transform with an attribute that we do not know is one that we do not support (RFC 7296 3.3.6).
    proposal.transforms.iter().filter(move |t| t.kind == kind && t.other_attributes.is_empty())
}

fn names(proposal: &Proposal, kind: TransformType) -> bool {
    proposal.transforms.iter().any(|t| t.kind == kind)
}

/// A transform type that we do not know makes the whole proposal unacceptable (RFC 7296 3.3.6).
fn only_kinds(proposal: &Proposal, kinds: &[TransformType]) -> bool {
    proposal.transforms.iter().all(|t| kinds.contains(&t.kind))
}

fn pick_cipher(ours: &[Cipher], theirs: &Proposal) -> Option<Cipher> {
    ours.iter()
        .copied()
        .find(|c| of_kind(theirs, TransformType::ENCR).any(|t| (t.id, t.key_bits) == c.transform()))
}

/// `Some(None)`: no integrity is needed and none is demanded. NONE (0) counts as absent (RFC 7296 3.3.3).
fn pick_integrity(ours: &[Integrity], theirs: &Proposal) -> Option<Option<Integrity>> {
    let demanded = names(theirs, TransformType::INTEG);
    if ours.is_empty() {
        let none = !demanded || of_kind(theirs, TransformType::INTEG).any(|t| t.id == 0);
        return none.then_some(None);
    }
    let found = ours.iter().copied().find(|i| {
        of_kind(theirs, TransformType::INTEG).any(|t| t.id == i.transform() && t.key_bits.is_none())
    });
    found.map(Some)
}

fn pick_ke(ours: &[KeyExchange], theirs: &Proposal, prefer: Option<KeyExchange>) -> Option<KeyExchange> {
    let offered = |k: &KeyExchange| of_kind(theirs, TransformType::KE).any(|t| t.id == k.transform());
    // The method whose public value is already there saves a round trip, if we accept it at all.
    prefer.filter(|k| ours.contains(k) && offered(k)).or_else(|| ours.iter().copied().find(|k| offered(k)))
}

/// The first acceptable proposal of the peer, and the number to answer with.
pub(super) fn choose_ike(
    ours: &[IkeProposal],
    theirs: &[Proposal],
    spi_len: usize,
    prefer: Option<KeyExchange>,
) -> Option<(IkeSuite, Proposal)> {
    const KINDS: [TransformType; 4] =
        [TransformType::ENCR, TransformType::PRF, TransformType::INTEG, TransformType::KE];
    for our in ours {
        for their in theirs {
            if their.protocol != ProtocolId::IKE || their.spi.len() != spi_len || !only_kinds(their, &KINDS) {
                continue;
            }
            let found = (|| {
                Some(IkeSuite {
                    cipher: pick_cipher(&our.ciphers, their)?,
                    integrity: pick_integrity(&our.integrity, their)?,
                    prf: our.prfs.iter().copied().find(|f| prf_offered(their, *f))?,
                    ke: pick_ke(&our.kes, their, prefer)?,
                })
            })();
            if let Some(suite) = found {
                return Some((suite, their.clone()));
            }
        }
    }
    None
}

fn prf_offered(theirs: &Proposal, prf: Prf) -> bool {
    of_kind(theirs, TransformType::PRF).any(|t| t.id == prf.transform())
}

/// Likewise for ESP. `ke` says whether the exchange may carry a key exchange (not in IKE_AUTH).
pub(super) fn choose_esp(
    ours: &[EspProposal],
    theirs: &[Proposal],
    ke: bool,
    prefer: Option<KeyExchange>,
) -> Option<(EspSuite, Proposal)> {
    const KINDS: [TransformType; 4] =
        [TransformType::ENCR, TransformType::INTEG, TransformType::KE, TransformType::ESN];
    for our in ours {
        for their in theirs {
            if their.protocol != ProtocolId::ESP || their.spi.len() != 4 || !only_kinds(their, &KINDS) {
                continue;
            }
            let found = (|| {
                let demands_ke =
                    names(their, TransformType::KE) && !of_kind(their, TransformType::KE).any(|t| t.id == 0);
                let ke = match (ke, our.kes.is_empty()) {
                    (false, _) => None,
                    (true, true) if demands_ke => return None,
                    (true, true) => None,
                    (true, false) => Some(pick_ke(&our.kes, their, prefer)?),
                };
                Some(EspSuite {
                    cipher: pick_cipher(&our.ciphers, their)?,
                    integrity: pick_integrity(&our.integrity, their)?,
                    ke,
                    esn: our.esn.iter().copied().find(|e| {
                        // A peer that names no ESN transform means 32-bit numbers.
                        of_kind(their, TransformType::ESN).any(|t| t.id == u16::from(*e))
                            || (!*e && !names(their, TransformType::ESN))
                    })?,
                })
            })();
            if let Some(suite) = found {
                return Some((suite, their.clone()));
            }
        }
    }
    None
}

/// The answer to a proposal: exactly the selected transforms.
pub(super) fn answer_ike(suite: &IkeSuite, chosen: &Proposal, spi: &[u8]) -> Proposal {
    let p = IkeProposal {
        ciphers: vec![suite.cipher],
        integrity: suite.integrity.into_iter().collect(),
        prfs: vec![suite.prf],
        kes: vec![suite.ke],
    };
    Proposal { number: chosen.number, ..offer_ike(&[p], spi).remove(0) }
}

/// The answer to a proposal: exactly the selected transforms. ESN is echoed only if the peer named it.
pub(super) fn answer_esp(suite: &EspSuite, chosen: &Proposal, spi: &[u8]) -> Proposal {
    let p = EspProposal {
        ciphers: vec![suite.cipher],
        integrity: suite.integrity.into_iter().collect(),
        kes: suite.ke.into_iter().collect(),
        esn: if names(chosen, TransformType::ESN) { vec![suite.esn] } else { Vec::new() },
    };
    Proposal { number: chosen.number, ..offer_esp(&[p], spi, true).remove(0) }
}

/// For people: where the two proposals that agree most part. Both arguments are lists as offered.
pub(super) fn mismatch(ours: &[Proposal], theirs: &[Proposal]) -> String {
    const KINDS: [(TransformType, &str); 5] = [
        (TransformType::ENCR, "encryption"),
        (TransformType::INTEG, "integrity"),
        (TransformType::PRF, "PRF"),
        (TransformType::KE, "key exchange"),
        (TransformType::ESN, "sequence numbers"),
    ];
    let list = |p: &Proposal, kind| of_kind(p, kind).map(show_transform).collect::<Vec<_>>();
    // How many kinds agree before the first that does not, and that one.
    let parting = |our: &Proposal, their: &Proposal| {
        KINDS.iter().enumerate().find_map(|(agreed, (kind, name))| {
            let (a, b) = (list(our, *kind), list(their, *kind));
            let common = a.iter().any(|t| b.contains(t)) || (a.is_empty() && b.is_empty());
            (!common).then(|| {
                (agreed, format!("{name}: the peer offers [{}], we accept [{}]", b.join(" "), a.join(" ")))
            })
        })
    };
    let pairs = ours.iter().flat_map(|our| theirs.iter().filter_map(move |their| parting(our, their)));
    pairs.max_by_key(|(agreed, _)| *agreed).map_or_else(|| "nothing was offered".into(), |(_, text)| text)
}

fn show_transform(t: &Transform) -> String {
    let known = match t.kind {
        TransformType::ENCR => Cipher::from_transform(t.id, t.key_bits).map(|c| c.to_string()),
        TransformType::PRF => Prf::from_transform(t.id).map(|c| c.to_string()),
        TransformType::INTEG => Integrity::from_transform(t.id).map(|c| c.to_string()),
        TransformType::KE => KeyExchange::from_transform(t.id).map(|c| c.to_string()),
        TransformType::ESN => Some(if t.id == 1 { "EXT_SEQ" } else { "NO_EXT_SEQ" }.to_string()),
        _ => None,
    };
    known.unwrap_or_else(|| match t.key_bits {
        Some(bits) => format!("{}({})_{bits}", t.kind, t.id),
        None => format!("{}({})", t.kind, t.id),
    })
}

/// The peer's lists for the log, in the words of our own.
pub(super) fn describe(proposals: &[Proposal]) -> String {
    let one = |p: &Proposal| {
        let words: Vec<String> = p.transforms.iter().map(show_transform).collect();
        format!("{}:{}", p.protocol, words.join("/"))
    };
    proposals.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_names_where_the_closest_proposals_part() {
        let offer = |text: &str| offer_ike(&[text.parse().unwrap()], &[]);
        let ours = offer("aes256gcm16-prfsha384-x25519");
        let reason = mismatch(&ours, &offer("aes256gcm16-prfsha384-modp2048"));
        assert_eq!(reason, "key exchange: the peer offers [MODP_2048], we accept [CURVE_25519]");
        let both =
            [offer("chacha20poly1305-prfsha384-x25519"), offer("aes256gcm16-prfsha256-x25519")].concat();
        assert!(mismatch(&ours, &both).starts_with("PRF: the peer offers [PRF_HMAC_SHA2_256]"));
        let cbc = mismatch(&ours, &offer("aes256-sha256-x25519"));
        assert!(cbc.starts_with("encryption: the peer offers [AES_CBC_256]"), "{cbc}");
        assert_eq!(mismatch(&ours, &[]), "nothing was offered");
    }
}
