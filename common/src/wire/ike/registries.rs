//! The number registries of IKEv2.

use crate::registry::registry;

registry! {
    /// Exchange Type (RFC 7296 3.1).
    ExchangeType(u8) { IKE_SA_INIT = 34, IKE_AUTH = 35, CREATE_CHILD_SA = 36, INFORMATIONAL = 37 }
}

registry! {
    /// Payload Type (RFC 7296 3.2, RFC 7383).
    PayloadType(u8) {
        NONE = 0, SA = 33, KE = 34, IDI = 35, IDR = 36, CERT = 37, CERTREQ = 38, AUTH = 39, NONCE = 40, N = 41,
        D = 42, V = 43, TSI = 44, TSR = 45, SK = 46, CP = 47, EAP = 48, SKF = 53,
    }
}

registry! {
    /// Protocol ID (RFC 7296 3.3.1).
    ProtocolId(u8) { NONE = 0, IKE = 1, AH = 2, ESP = 3 }
}

registry! {
    /// ID Type (RFC 7296 3.5).
    IdType(u8) {
        IPV4_ADDR = 1, FQDN = 2, RFC822_ADDR = 3, IPV6_ADDR = 5, DER_ASN1_DN = 9, DER_ASN1_GN = 10, KEY_ID = 11,
    }
}

registry! {
    /// Authentication Method (RFC 7296 3.8, RFC 7427).
    AuthMethod(u8) {
        RSA_SIGNATURE = 1, SHARED_KEY_MIC = 2, DSS_SIGNATURE = 3, ECDSA_256 = 9, ECDSA_384 = 10, ECDSA_521 = 11,
        NULL = 13, DIGITAL_SIGNATURE = 14,
    }
}

registry! {
    /// Certificate Encoding (RFC 7296 3.6).
    CertEncoding(u8) { X509_SIGNATURE = 4, CRL = 7, HASH_AND_URL = 12, RAW_PUBLIC_KEY = 15 }
}

registry! {
    /// CFG Type (RFC 7296 3.15).
    ConfigType(u8) { CFG_REQUEST = 1, CFG_REPLY = 2, CFG_SET = 3, CFG_ACK = 4 }
}

registry! {
    /// Configuration Payload Attribute Type (RFC 7296 3.15.1).
    ConfigAttributeType(u16) {
        INTERNAL_IP4_ADDRESS = 1, INTERNAL_IP4_NETMASK = 2, INTERNAL_IP4_DNS = 3, INTERNAL_IP4_NBNS = 4,
        INTERNAL_IP4_DHCP = 6, APPLICATION_VERSION = 7, INTERNAL_IP6_ADDRESS = 8, INTERNAL_IP6_DNS = 10,
        INTERNAL_IP6_DHCP = 12, INTERNAL_IP4_SUBNET = 13, SUPPORTED_ATTRIBUTES = 14, INTERNAL_IP6_SUBNET = 15,
    }
}

registry! {
    /// Notify Message Type (RFC 7296 3.10.1, RFC 4555, RFC 6023, RFC 7383, RFC 7427). Below 16384: errors.
    NotifyType(u16) {
        UNSUPPORTED_CRITICAL_PAYLOAD = 1, INVALID_IKE_SPI = 4, INVALID_MAJOR_VERSION = 5, INVALID_SYNTAX = 7,
        INVALID_MESSAGE_ID = 9, INVALID_SPI = 11, NO_PROPOSAL_CHOSEN = 14, INVALID_KE_PAYLOAD = 17,
        AUTHENTICATION_FAILED = 24, SINGLE_PAIR_REQUIRED = 34, NO_ADDITIONAL_SAS = 35,
        INTERNAL_ADDRESS_FAILURE = 36, FAILED_CP_REQUIRED = 37, TS_UNACCEPTABLE = 38, INVALID_SELECTORS = 39,
        UNACCEPTABLE_ADDRESSES = 40, UNEXPECTED_NAT_DETECTED = 41, TEMPORARY_FAILURE = 43,
        CHILD_SA_NOT_FOUND = 44, INITIAL_CONTACT = 16384, SET_WINDOW_SIZE = 16385,
        ADDITIONAL_TS_POSSIBLE = 16386, IPCOMP_SUPPORTED = 16387, NAT_DETECTION_SOURCE_IP = 16388,
        NAT_DETECTION_DESTINATION_IP = 16389, COOKIE = 16390, USE_TRANSPORT_MODE = 16391,
        HTTP_CERT_LOOKUP_SUPPORTED = 16392, REKEY_SA = 16393, ESP_TFC_PADDING_NOT_SUPPORTED = 16394,
        NON_FIRST_FRAGMENTS_ALSO = 16395, MOBIKE_SUPPORTED = 16396, ADDITIONAL_IP4_ADDRESS = 16397,
        ADDITIONAL_IP6_ADDRESS = 16398, NO_ADDITIONAL_ADDRESSES = 16399, UPDATE_SA_ADDRESSES = 16400,
        COOKIE2 = 16401, NO_NATS_ALLOWED = 16402, CHILDLESS_IKEV2_SUPPORTED = 16418,
        IKEV2_FRAGMENTATION_SUPPORTED = 16430, SIGNATURE_HASH_ALGORITHMS = 16431,
    }
}

impl NotifyType {
    /// The short form that logs of IPsec daemons use, e.g. `NATD_S_IP`.
    pub fn short_name(self) -> String {
        let short = match self {
            Self::UNSUPPORTED_CRITICAL_PAYLOAD => "CRIT",
            Self::INVALID_MAJOR_VERSION => "INVAL_MAJOR",
            Self::INVALID_SYNTAX => "INVAL_SYN",
            Self::NO_PROPOSAL_CHOSEN => "NO_PROP",
            Self::INVALID_KE_PAYLOAD => "INVAL_KE",
            Self::AUTHENTICATION_FAILED => "AUTH_FAILED",
            Self::NO_ADDITIONAL_SAS => "NO_ADD_SAS",
            Self::TS_UNACCEPTABLE => "TS_UNACCEPT",
            Self::TEMPORARY_FAILURE => "TEMP_FAIL",
            Self::CHILD_SA_NOT_FOUND => "NO_CHILD_SA",
            Self::INITIAL_CONTACT => "INIT_CONTACT",
            Self::NAT_DETECTION_SOURCE_IP => "NATD_S_IP",
            Self::NAT_DETECTION_DESTINATION_IP => "NATD_D_IP",
            Self::USE_TRANSPORT_MODE => "USE_TRANSP",
            Self::ESP_TFC_PADDING_NOT_SUPPORTED => "ESP_TFC_PAD_N",
            Self::MOBIKE_SUPPORTED => "MOBIKE_SUP",
            Self::ADDITIONAL_IP4_ADDRESS => "ADD_4_ADDR",
            Self::ADDITIONAL_IP6_ADDRESS => "ADD_6_ADDR",
            Self::IKEV2_FRAGMENTATION_SUPPORTED => "FRAG_SUP",
            Self::SIGNATURE_HASH_ALGORITHMS => "HASH_ALG",
            other => return other.to_string(),
        };
        short.to_string()
    }
}
