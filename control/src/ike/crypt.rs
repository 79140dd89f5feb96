//! Whole messages: the unprotected form and the Encrypted payload around the protected one (RFC 7296 3.14,
//! RFC 5282), or around a fragment of it (RFC 7383 2.5).

use mobikex_common::crypto::PacketCipher;
use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::{ExchangeType, Flags, Header, Payload, PayloadType, emit_chain, parse_chain};
use rand_chacha::ChaCha20Rng;
use rand_core::Rng;

use super::error::IkeError;

/// Generic payload header: next payload, flags, length.
const PAYLOAD_HEADER: usize = 4;
/// Fragment Number and Total Fragments.
const FRAGMENT_NUMBERS: usize = 4;

/// What a message's header says, in the engine's terms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Envelope {
    /// Original initiator's SPI.
    pub(super) spi_i: IkeSpi,
    /// Original responder's SPI.
    pub(super) spi_r: IkeSpi,
    /// Exchange type.
    pub(super) exchange: ExchangeType,
    /// Whether the sender is the original initiator of the IKE SA.
    pub(super) from_initiator: bool,
    /// Whether this is a response.
    pub(super) response: bool,
    /// Message ID.
    pub(super) message_id: u32,
}

impl Envelope {
    fn header(&self, next_payload: PayloadType, length: usize) -> [u8; 28] {
        Header {
            initiator_spi: self.spi_i,
            responder_spi: self.spi_r,
            next_payload,
            major: 2,
            minor: 0,
            exchange: self.exchange,
            flags: Flags { initiator: self.from_initiator, higher_version: false, response: self.response },
            message_id: self.message_id,
            length: length as u32,
        }
        .emit()
    }
}

/// A message without protection: IKE_SA_INIT, and error answers before keys exist.
pub(super) fn plain(envelope: &Envelope, payloads: &[Payload]) -> Vec<u8> {
    let (first, body) = emit_chain(payloads);
    let mut message = envelope.header(first, Header::LEN + body.len()).to_vec();
    message.extend_from_slice(&body);
    message
}

/// What goes into an Encrypted payload, or into a fragment of one.
pub(super) struct Part<'a> {
    /// The type of the first inner payload; NONE in every fragment but the first.
    pub(super) next: PayloadType,
    /// Fragment Number and Total Fragments (RFC 7383 2.5).
    pub(super) place: Option<(u16, u16)>,
    /// The inner payload chain, or a piece of it.
    pub(super) text: &'a [u8],
}

/// Octets that a message needs besides its content and the padding: IKE header, payload header, numbers of a fragment, IV
/// and ICV.
pub(super) fn overhead(cipher: &PacketCipher, fragment: bool) -> usize {
    let numbers = if fragment { FRAGMENT_NUMBERS } else { 0 };
    Header::LEN + PAYLOAD_HEADER + numbers + cipher.iv_len() + cipher.icv_len()
}

/// What lengths of content with its padding are multiples of. AEADs need no padding at all (RFC 5282 3).
pub(super) fn block(cipher: &PacketCipher) -> usize {
    if cipher.cipher().is_aead() { 1 } else { cipher.block_len() }
}

/// A message with one Encrypted payload, or one fragment of it, and nothing outside. `ivs` is the SA's IV counter: an AEAD
/// IV is never used twice (RFC 5282 3.1); CBC draws its IV from `rng` (RFC 3602 3).
pub(super) fn seal(
    envelope: &Envelope,
    part: &Part<'_>,
    cipher: &PacketCipher,
    ivs: &mut u64,
    rng: &mut ChaCha20Rng,
) -> Result<Vec<u8>, IkeError> {
    let mut text = part.text.to_vec();
    // The pad length octet closes the block.
    let block = block(cipher);
    let padding = (block - (text.len() + 1) % block) % block;
    text.resize(text.len() + padding, 0);
    text.push(padding as u8);

    let mut iv = vec![0; cipher.iv_len()];
    if cipher.cipher().is_aead() {
        *ivs = ivs.checked_add(1).ok_or(IkeError::IvsExhausted)?;
        iv.copy_from_slice(&ivs.to_be_bytes());
    } else {
        rng.fill_bytes(&mut iv);
    }
    let kind = if part.place.is_some() { PayloadType::SKF } else { PayloadType::SK };
    let len = overhead(cipher, part.place.is_some()) + text.len();
    let mut message = envelope.header(kind, len).to_vec();
    message.push(part.next.0);
    message.push(0);
    message.extend_from_slice(&((len - Header::LEN) as u16).to_be_bytes());
    if let Some((number, total)) = part.place {
        message.extend_from_slice(&number.to_be_bytes());
        message.extend_from_slice(&total.to_be_bytes());
    }
    let mut icv = vec![0; cipher.icv_len()];
    cipher.seal(&iv, &message, &[], &mut text, &mut icv)?;
    message.extend_from_slice(&iv);
    message.extend_from_slice(&text);
    message.extend_from_slice(&icv);
    Ok(message)
}

/// Proof that a message's integrity was verified with an IKE SA's keys; only [`Sealed::open`] makes one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Protected(());

/// A message whose integrity was verified.
pub(super) struct Opened {
    text: Vec<u8>,
    /// The type of the first inner payload.
    pub(super) next: PayloadType,
    /// The proof, for the handlers.
    pub(super) proof: Protected,
}

impl Opened {
    /// The inner payload chain without its padding.
    pub(super) fn padded(&self) -> Result<&[u8], IkeError> {
        let padding = usize::from(self.text.last().copied().unwrap_or(0)) + 1;
        let len = self.text.len().checked_sub(padding).ok_or(IkeError::BadPadding)?;
        Ok(&self.text[..len])
    }
}

/// A message whose last payload is Encrypted, or a fragment, not verified yet. Everything before that payload is covered by
/// the ICV but not secret; nothing is defined there, so it is ignored.
pub(super) struct Sealed<'a> {
    head: &'a [u8],
    body: &'a [u8],
    next: PayloadType,
    /// Fragment Number and Total Fragments.
    pub(super) place: Option<(u16, u16)>,
}

impl<'a> Sealed<'a> {
    /// Finds the payload, without any cryptography.
    pub(super) fn read(datagram: &'a [u8]) -> Result<Self, IkeError> {
        let header = Header::parse(datagram)?;
        let outer = parse_chain(header.next_payload, &datagram[Header::LEN..])?;
        let (next, place, len) = match outer.last() {
            Some(Payload::Encrypted { next, body }) => (*next, None, body.len()),
            Some(Payload::EncryptedFragment { next, number, total, body }) => {
                (*next, Some((*number, *total)), body.len())
            }
            _ => return Err(IkeError::NotProtected),
        };
        let at = datagram.len().checked_sub(len).ok_or(IkeError::NotProtected)?;
        let (head, body) = datagram.split_at(at);
        Ok(Self { head, body, next, place })
    }

    /// Verifies and decrypts.
    pub(super) fn open(&self, cipher: &PacketCipher) -> Result<Opened, IkeError> {
        let (iv_len, icv_len) = (cipher.iv_len(), cipher.icv_len());
        if self.body.len() < iv_len + icv_len + 1 {
            return Err(IkeError::NotProtected);
        }
        let (iv, rest) = self.body.split_at(iv_len);
        let (text, icv) = rest.split_at(rest.len() - icv_len);
        let mut text = text.to_vec();
        cipher.open(iv, self.head, &[], &mut text, icv)?;
        Ok(Opened { text, next: self.next, proof: Protected(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobikex_common::alg::{Cipher, Integrity};
    use mobikex_common::wire::ike::{Notify, NotifyType};
    use rand_core::SeedableRng;

    fn cipher(cipher: Cipher) -> PacketCipher {
        let integrity = (!cipher.is_aead()).then_some(Integrity::HmacSha512);
        let integrity_key = vec![2; integrity.map_or(0, Integrity::key_len)];
        PacketCipher::new(cipher, integrity, &vec![1; cipher.key_material_len()], &integrity_key).unwrap()
    }

    const EMPTY: Part<'_> = Part { next: PayloadType::NONE, place: None, text: &[] };

    fn open(datagram: &[u8], cipher: &PacketCipher) -> Result<Opened, IkeError> {
        Sealed::read(datagram)?.open(cipher)
    }

    fn envelope() -> Envelope {
        Envelope {
            spi_i: IkeSpi(1),
            spi_r: IkeSpi(2),
            exchange: ExchangeType::INFORMATIONAL,
            from_initiator: true,
            response: false,
            message_id: 3,
        }
    }

    #[test]
    fn any_changed_octet_of_a_message_is_noticed() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        for kind in Cipher::ALL {
            let (cipher, mut ivs) = (cipher(kind), 0);
            for (len, place) in [(0, None), (1, Some((1, 1))), (15, None), (16, Some((1, 300))), (33, None)] {
                let payloads = [Payload::Notify(Notify::new(NotifyType::COOKIE2, vec![7; len]))];
                let (next, text) = emit_chain(&payloads);
                let part = Part { next, place, text: &text };
                let message = seal(&envelope(), &part, &cipher, &mut ivs, &mut rng).unwrap();
                let opened = open(&message, &cipher).unwrap();
                assert_eq!(parse_chain(opened.next, opened.padded().unwrap()).unwrap(), payloads);
                assert_eq!(Sealed::read(&message).unwrap().place, place);
                for at in 0..message.len() {
                    let mut bad = message.clone();
                    bad[at] ^= 0x40;
                    assert!(open(&bad, &cipher).is_err(), "{kind} octet {at}");
                }
            }
        }
    }

    #[test]
    fn b20_cbc_ivs_are_random_and_b21_aead_ivs_never_repeat() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        for kind in Cipher::ALL {
            let (cipher, mut ivs) = (cipher(kind), 0);
            let mut seen = std::collections::HashSet::new();
            for _ in 0..100 {
                let message = seal(&envelope(), &EMPTY, &cipher, &mut ivs, &mut rng).unwrap();
                let iv = message[32..32 + cipher.iv_len()].to_vec();
                assert!(seen.insert(iv), "{kind} repeated an IV");
            }
            let mut last = u64::MAX;
            let result = seal(&envelope(), &EMPTY, &cipher, &mut last, &mut rng);
            assert_eq!(result.is_err(), kind.is_aead(), "an AEAD stops before its IVs wrap");
        }
    }
}
