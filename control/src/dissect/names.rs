//! Names of numbers that have no registry among the codecs, because the engine knows only its closed sets of them.

use mobikex_common::alg::TransformType;

/// The name of a transform (IANA, IKEv2 Transform Types 1 to 5).
pub(super) fn transform(kind: TransformType, id: u16) -> String {
    let name = match (kind, id) {
        (TransformType::ENCR, id) => match id {
            2 => "DES",
            3 => "3DES",
            11 => "NULL",
            12 => "AES_CBC",
            13 => "AES_CTR",
            14 => "AES_CCM_8",
            15 => "AES_CCM_12",
            16 => "AES_CCM_16",
            18 => "AES_GCM_8",
            19 => "AES_GCM_12",
            20 => "AES_GCM_16",
            21 => "NULL_AUTH_AES_GMAC",
            23 => "CAMELLIA_CBC",
            28 => "CHACHA20_POLY1305",
            _ => "",
        },
        (TransformType::PRF, id) => match id {
            1 => "HMAC_MD5",
            2 => "HMAC_SHA1",
            4 => "AES128_XCBC",
            5 => "HMAC_SHA2_256",
            6 => "HMAC_SHA2_384",
            7 => "HMAC_SHA2_512",
            8 => "AES128_CMAC",
            _ => "",
        },
        (TransformType::INTEG, id) => match id {
            0 => "NONE",
            1 => "HMAC_MD5_96",
            2 => "HMAC_SHA1_96",
            5 => "AES_XCBC_96",
            8 => "AES_CMAC_96",
            12 => "HMAC_SHA2_256_128",
            13 => "HMAC_SHA2_384_192",
            14 => "HMAC_SHA2_512_256",
            _ => "",
        },
        (TransformType::KE, id) => return key_exchange(id),
        (TransformType::ESN, 0) => "NO_EXT_SEQ",
        (TransformType::ESN, 1) => "EXT_SEQ",
        _ => "",
    };
    if name.is_empty() { id.to_string() } else { name.into() }
}

/// The name of a key exchange method.
pub(super) fn key_exchange(method: u16) -> String {
    let name = match method {
        0 => "NONE",
        2 => "MODP_1024",
        5 => "MODP_1536",
        14 => "MODP_2048",
        15 => "MODP_3072",
        16 => "MODP_4096",
        17 => "MODP_6144",
        18 => "MODP_8192",
        19 => "ECP_256",
        20 => "ECP_384",
        21 => "ECP_521",
        31 => "CURVE_25519",
        32 => "CURVE_448",
        35 => "ML_KEM_512",
        36 => "ML_KEM_768",
        37 => "ML_KEM_1024",
        other => return other.to_string(),
    };
    name.into()
}

/// The name of a hash algorithm (RFC 7427 7).
pub(super) fn hash(id: u16) -> String {
    let name = match id {
        1 => "SHA1",
        2 => "SHA2_256",
        3 => "SHA2_384",
        4 => "SHA2_512",
        5 => "IDENTITY",
        other => return other.to_string(),
    };
    name.into()
}

/// The name of an IP protocol that is likely inside a tunnel.
pub(super) fn protocol(number: u8) -> String {
    let name = match number {
        1 => "ICMP",
        4 => "IPv4",
        6 => "TCP",
        17 => "UDP",
        41 => "IPv6",
        50 => "ESP",
        51 => "AH",
        58 => "ICMPv6",
        132 => "SCTP",
        other => return format!("protocol {other}"),
    };
    name.into()
}
