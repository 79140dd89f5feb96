//! Whole messages: the unprotected form and the Encrypted payload around the protected one (RFC 7296 3.14,
//! RFC 5282).

use mobikex_common::crypto::PacketCipher;
use mobikex_common::spi::IkeSpi;
use mobikex_common::wire::ike::{ExchangeType, Flags, Header, Payload, PayloadType, emit_chain, parse_chain};
use rand_chacha::ChaCha20Rng;
use rand_core::Rng;

use super::error::IkeError;

/// Generic payload header: next payload, flags, length.
const PAYLOAD_HEADER: usize = 4;

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

/// A message whose payloads all sit in one Encrypted payload. `ivs` is the SA's IV counter: an AEAD IV is never
/// used twice (RFC 5282 3.1); CBC draws its IV from `rng` (RFC 3602 3).
pub(super) fn seal(
    envelope: &Envelope,
    payloads: &[Payload],
    cipher: &PacketCipher,
    ivs: &mut u64,
    rng: &mut ChaCha20Rng,
) -> Result<Vec<u8>, IkeError> {
    let (first, mut text) = emit_chain(payloads);
    // The pad length octet closes the block; AEADs need no padding at all (RFC 5282 3).
    let block = if cipher.cipher().is_aead() { 1 } else { cipher.block_len() };
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
    let body_len = PAYLOAD_HEADER + iv.len() + text.len() + cipher.icv_len();
    let mut message = envelope.header(PayloadType::SK, Header::LEN + body_len).to_vec();
    message.push(first.0);
    message.push(0);
    message.extend_from_slice(&(body_len as u16).to_be_bytes());
    let mut icv = vec![0; cipher.icv_len()];
    cipher.seal(&iv, &message, &[], &mut text, &mut icv)?;
    message.extend_from_slice(&iv);
    message.extend_from_slice(&text);
    message.extend_from_slice(&icv);
    Ok(message)
}

/// Proof that a message's integrity was verified with an IKE SA's keys; only [`open`] makes one.
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

/// Verifies and decrypts a message whose last payload is Encrypted. Everything before the Encrypted payload is
/// covered by the ICV but not secret; nothing is defined there, so it is ignored.
pub(super) fn open(datagram: &[u8], cipher: &PacketCipher) -> Result<Opened, IkeError> {
    let header = Header::parse(datagram)?;
    let outer = parse_chain(header.next_payload, &datagram[Header::LEN..])?;
    let Some(Payload::Encrypted { next, body }) = outer.last() else {
        return Err(IkeError::NotProtected);
    };
    let (iv_len, icv_len) = (cipher.iv_len(), cipher.icv_len());
    if body.len() < iv_len + icv_len + 1 || datagram.len() < body.len() {
        return Err(IkeError::NotProtected);
    }
    let head = &datagram[..datagram.len() - body.len()];
    let (iv, rest) = body.split_at(iv_len);
    let (text, icv) = rest.split_at(rest.len() - icv_len);
    let mut text = text.to_vec();
    cipher.open(iv, head, &[], &mut text, icv)?;
    Ok(Opened { text, next: *next, proof: Protected(()) })
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
            for len in [0, 1, 15, 16, 33] {
                let payloads = [Payload::Notify(Notify::new(NotifyType::COOKIE2, vec![7; len]))];
                let message = seal(&envelope(), &payloads, &cipher, &mut ivs, &mut rng).unwrap();
                let opened = open(&message, &cipher).unwrap();
                assert_eq!(parse_chain(opened.next, opened.padded().unwrap()).unwrap(), payloads);
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
                let message = seal(&envelope(), &[], &cipher, &mut ivs, &mut rng).unwrap();
                let iv = message[32..32 + cipher.iv_len()].to_vec();
                assert!(seen.insert(iv), "{kind} repeated an IV");
            }
            let mut last = u64::MAX;
            let result = seal(&envelope(), &[], &cipher, &mut last, &mut rng);
            assert_eq!(result.is_err(), kind.is_aead(), "an AEAD stops before its IVs wrap");
        }
    }
}
