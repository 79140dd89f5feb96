//! What MSCHAPv2 computes (RFC 2759 8) and the keys that come of it (RFC 3079 3). MD4, DES and SHA-1 are broken and
//! prescribed: EAP-MSCHAPv2 runs only inside an IKE SA whose responder has proven itself before.

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};
use md4::{Digest, Md4};
use mobikex_common::crypto::{Secret, sha1};
use zeroize::Zeroizing;

const SERVER_SIGNING: &[u8] = b"Magic server to client signing constant";
const PAD_TO_MAKE_IT: &[u8] = b"Pad to make it do more than one iteration";
const MASTER_KEY: &[u8] = b"This is the MPPE Master Key";
const CLIENT_SENDS: &[u8] =
    b"On the client side, this is the send key; on the server side, it is the receive key.";
const SERVER_SENDS: &[u8] =
    b"On the client side, this is the receive key; on the server side, it is the send key.";

/// NtPasswordHash: as good as the password itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NtHash(Secret);

impl NtHash {
    /// Octets of a hash.
    pub const LEN: usize = 16;

    /// The hash of a password in UTF-8.
    pub fn of(password: &str) -> Self {
        let utf16: Zeroizing<Vec<u8>> =
            Zeroizing::new(password.encode_utf16().flat_map(u16::to_le_bytes).collect());
        Self(md4(&utf16))
    }

    /// A hash that is known as such (section `ntlm` of `secrets`).
    pub fn from_octets(octets: Secret) -> Option<Self> {
        (octets.len() == Self::LEN).then_some(Self(octets))
    }

    /// The hash itself.
    pub fn octets(&self) -> &Secret {
        &self.0
    }

    fn hash_of_it(&self) -> Secret {
        md4(&self.0)
    }
}

fn md4(octets: &[u8]) -> Secret {
    Secret::from(Md4::digest(octets).to_vec())
}

/// What both sides of one attempt know.
pub struct Attempt<'a> {
    /// The server's challenge.
    pub server: &'a [u8; 16],
    /// The peer's.
    pub peer: &'a [u8; 16],
    /// The name, without a domain.
    pub user: &'a [u8],
}

impl Attempt<'_> {
    /// ChallengeHash.
    fn challenge(&self) -> [u8; 8] {
        let hash = sha1(&[self.peer, self.server, self.user]);
        let mut out = [0; 8];
        out.copy_from_slice(&hash[..8]);
        out
    }

    /// GenerateNTResponse.
    pub fn response(&self, hash: &NtHash) -> [u8; 24] {
        let challenge = self.challenge();
        let mut padded = Zeroizing::new([0; 21]);
        padded[..NtHash::LEN].copy_from_slice(hash.octets());
        let mut out = [0; 24];
        for (key, block) in padded.chunks_exact(7).zip(out.chunks_exact_mut(8)) {
            let mut text = challenge.into();
            Des::new(&des_key(key).into()).encrypt_block(&mut text);
            block.copy_from_slice(&text);
        }
        out
    }

    /// GenerateAuthenticatorResponse: `S=` and 40 digits, by which the server shows that it knows the password.
    pub fn authenticator(&self, hash: &NtHash, response: &[u8; 24]) -> String {
        let digest = sha1(&[&hash.hash_of_it(), response, SERVER_SIGNING]);
        let digest = sha1(&[&digest, &self.challenge(), PAD_TO_MAKE_IT]);
        let digits: String = digest.iter().map(|octet| format!("{octet:02X}")).collect();
        format!("S={digits}")
    }
}

/// 56 bits as DES wants them: seven to an octet, the parity bit is not looked at.
fn des_key(bits: &[u8]) -> [u8; 8] {
    let all = bits.iter().fold(0u64, |all, octet| all << 8 | u64::from(*octet));
    std::array::from_fn(|i| ((all >> (49 - 7 * i)) as u8) << 1)
}

/// The MSK: the server's receive key, its send key, and zeros up to 64 octets.
pub fn msk(hash: &NtHash, response: &[u8; 24]) -> Secret {
    let digest = sha1(&[&hash.hash_of_it(), response, MASTER_KEY]);
    let master = Zeroizing::new(digest);
    let start = |magic: &[u8]| Zeroizing::new(sha1(&[&master[..16], &[0; 40], magic, &[0xf2; 40]]));
    let mut out = vec![0; 64];
    out[..16].copy_from_slice(&start(CLIENT_SENDS)[..16]);
    out[16..32].copy_from_slice(&start(SERVER_SENDS)[..16]);
    Secret::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    const SERVER: [u8; 16] = hex!("5B5D7C7D7B3F2F3E3C2C602132262628");
    const PEER: [u8; 16] = hex!("21402324255E262A28295F2B3A337C7E");
    const RESPONSE: [u8; 24] = hex!("82309ECD8D708B5EA08FAA3981CD83544233114A3D85D6DF");

    #[test]
    fn rfc2759_9_2() {
        let attempt = Attempt { server: &SERVER, peer: &PEER, user: b"User" };
        assert_eq!(attempt.challenge(), hex!("D02E4386BCE91226"));
        let hash = NtHash::of("clientPass");
        assert_eq!(hash.octets()[..], hex!("44EBBA8D5312B8D611474411F56989AE"));
        assert_eq!(hash.hash_of_it()[..], hex!("41C00C584BD2D91C4017A2A12FA59F3F"));
        assert_eq!(attempt.response(&hash), RESPONSE);
        assert_eq!(attempt.authenticator(&hash, &RESPONSE), "S=407A5589115FD0D6209F510FE9C04566932CDA56");
    }

    /// RFC 3079 3.5.3 has the server's send key.
    #[test]
    fn rfc3079_3_5() {
        let msk = msk(&NtHash::of("clientPass"), &RESPONSE);
        assert_eq!(msk.len(), 64);
        assert_eq!(msk[16..32], hex!("8B7CDC149B993A1BA118CB153F56DCCB"));
        assert_eq!(msk[32..], [0; 32]);
        assert_ne!(msk[..16], msk[16..32]);
    }

    #[test]
    fn a_hash_has_sixteen_octets() {
        assert!(NtHash::from_octets(Secret::from(vec![0; 15])).is_none());
        assert_eq!(NtHash::from_octets(NtHash::of("x").octets().clone()), Some(NtHash::of("x")));
    }
}
