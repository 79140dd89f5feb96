//! The key schedule: one type per stage (RFC 7296 2.13, 2.14, 2.17, 2.18).

use mobikex_common::alg::{EspSuite, IkeSuite, Prf};
use mobikex_common::crypto::{CryptoError, PacketCipher, Secret, prf};
use mobikex_common::sa::EspKeys;
use mobikex_common::spi::IkeSpi;

use super::ctx::Ctx;
use super::output::Output;
use crate::dissect::IkeKeys;

/// SKEYSEED (RFC 7296 2.14): exists only on the way to [`SkKeys`].
pub(super) struct SkeySeed(Secret);

impl SkeySeed {
    /// For a new IKE SA: `prf(Ni | Nr, g^ir)`.
    pub(super) fn initial(alg: Prf, ni: &[u8], nr: &[u8], shared: &Secret) -> Self {
        let mut nonces = ni.to_vec();
        nonces.extend_from_slice(nr);
        Self(prf::prf(alg, &nonces, &[shared]))
    }

    /// For a rekeyed IKE SA: `prf(SK_d (old), g^ir (new) | Ni | Nr)`, with the old SA's PRF (RFC 7296 2.18).
    pub(super) fn rekeyed(old: &SkKeys, ni: &[u8], nr: &[u8], shared: &Secret) -> Self {
        Self(prf::prf(old.prf, &old.d, &[shared, ni, nr]))
    }

    /// Spreads the seed over the seven keys of an IKE SA. Where keys are saved, those that open its messages go out.
    pub(super) fn expand(
        self,
        ctx: &mut Ctx<'_>,
        suite: IkeSuite,
        ni: &[u8],
        nr: &[u8],
        spi_i: IkeSpi,
        spi_r: IkeSpi,
    ) -> Result<SkKeys, CryptoError> {
        let prf_len = suite.prf.output_len();
        let integ_len = suite.integrity.map_or(0, |i| i.key_len());
        let enc_len = suite.cipher.key_material_len();
        let stream = prf::prf_plus(
            suite.prf,
            &self.0,
            &[ni, nr, &spi_i.to_be_bytes(), &spi_r.to_be_bytes()],
            3 * prf_len + 2 * integ_len + 2 * enc_len,
        );
        let mut rest: &[u8] = &stream;
        let mut take = |len: usize| {
            let (head, tail) = rest.split_at(len);
            rest = tail;
            Secret::from(head.to_vec())
        };
        let d = take(prf_len);
        let (ai, ar) = (take(integ_len), take(integ_len));
        let (ei, er) = (take(enc_len), take(enc_len));
        let (pi, pr) = (take(prf_len), take(prf_len));
        let keys = SkKeys {
            prf: suite.prf,
            d,
            pi,
            pr,
            initiator: PacketCipher::new(suite.cipher, suite.integrity, &ei, &ai)?,
            responder: PacketCipher::new(suite.cipher, suite.integrity, &er, &ar)?,
        };
        if ctx.saves_keys {
            ctx.out.push_back(Output::SaveKeys(Box::new(IkeKeys {
                initiator_spi: spi_i,
                responder_spi: spi_r,
                cipher: suite.cipher,
                integrity: suite.integrity,
                encryption: [ei, er],
                authentication: [ai, ar],
            })));
        }
        Ok(keys)
    }
}

/// The keys of an IKE SA, ready for use.
pub(super) struct SkKeys {
    /// The negotiated PRF.
    pub(super) prf: Prf,
    d: Secret,
    /// SK_pi, for the initiator's AUTH.
    pub(super) pi: Secret,
    /// SK_pr, for the responder's AUTH.
    pub(super) pr: Secret,
    /// Protects what the original initiator sends (SK_ei, SK_ai).
    pub(super) initiator: PacketCipher,
    /// Protects what the original responder sends (SK_er, SK_ar).
    pub(super) responder: PacketCipher,
}

/// Keys of both directions of a Child SA: from the exchange's initiator, then from its responder.
pub(super) struct ChildKeymat {
    /// Initiator to responder.
    pub(super) initiator: EspKeys,
    /// Responder to initiator.
    pub(super) responder: EspKeys,
}

impl SkKeys {
    /// Takes less room until the next message.
    pub(super) fn rest(&mut self) {
        self.initiator.rest();
        self.responder.rest();
    }

    /// `KEYMAT = prf+(SK_d, [g^ir] | Ni | Nr)` (RFC 7296 2.17).
    pub(super) fn child(
        &self,
        suite: EspSuite,
        shared: Option<&Secret>,
        ni: &[u8],
        nr: &[u8],
    ) -> ChildKeymat {
        let enc_len = suite.cipher.key_material_len();
        let integ_len = suite.integrity.map_or(0, |i| i.key_len());
        let shared: &[u8] = shared.map_or(&[], |s| s);
        let stream = prf::prf_plus(self.prf, &self.d, &[shared, ni, nr], 2 * (enc_len + integ_len));
        let keys = |part: &[u8]| EspKeys {
            encryption: part[..enc_len].to_vec(),
            integrity: part[enc_len..].to_vec(),
        };
        let (initiator, responder) = stream.split_at(enc_len + integ_len);
        ChildKeymat { initiator: keys(initiator), responder: keys(responder) }
    }
}
