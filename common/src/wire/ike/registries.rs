//! The number registries of IKEv2.

use crate::registry::registry;

registry! {
    /// Exchange Type (RFC 7296 3.1, RFC 5723, RFC 9242, RFC 9370).
    ExchangeType(u8) {
        IKE_SA_INIT = 34, IKE_AUTH = 35, CREATE_CHILD_SA = 36, INFORMATIONAL = 37, IKE_SESSION_RESUME = 38,
        IKE_INTERMEDIATE = 43, IKE_FOLLOWUP_KE = 44,
    }
}

registry! {
    /// Payload Type (RFC 7296 3.2, RFC 6467, RFC 7383, RFC 8019).
    PayloadType(u8) {
        NONE = 0, SA = 33, KE = 34, IDI = 35, IDR = 36, CERT = 37, CERTREQ = 38, AUTH = 39, NONCE = 40, N = 41,
        D = 42, V = 43, TSI = 44, TSR = 45, SK = 46, CP = 47, EAP = 48, GSPM = 49, SKF = 53, PS = 54,
    }
}

registry! {
    /// Protocol ID (RFC 7296 3.3.1).
    ProtocolId(u8) { NONE = 0, IKE = 1, AH = 2, ESP = 3 }
}

registry! {
    /// ID Type (RFC 7296 3.5, RFC 7619).
    IdType(u8) {
        IPV4_ADDR = 1, FQDN = 2, RFC822_ADDR = 3, IPV6_ADDR = 5, DER_ASN1_DN = 9, DER_ASN1_GN = 10, KEY_ID = 11,
        FC_NAME = 12, NULL = 13,
    }
}

registry! {
    /// Authentication Method (RFC 7296 3.8, RFC 4754, RFC 6467, RFC 7427, RFC 7619).
    AuthMethod(u8) {
        RSA_SIGNATURE = 1, SHARED_KEY_MIC = 2, DSS_SIGNATURE = 3, ECDSA_256 = 9, ECDSA_384 = 10, ECDSA_521 = 11,
        GSPM = 12, NULL = 13, DIGITAL_SIGNATURE = 14,
    }
}

registry! {
    /// Certificate Encoding (RFC 7296 3.6, RFC 4806, RFC 7670).
    CertEncoding(u8) {
        PKCS7_X509 = 1, PGP = 2, DNS_SIGNED_KEY = 3, X509_SIGNATURE = 4, KERBEROS_TOKEN = 6, CRL = 7, ARL = 8,
        SPKI = 9, X509_ATTRIBUTE = 10, RAW_RSA_KEY = 11, HASH_AND_URL = 12, HASH_AND_URL_BUNDLE = 13, OCSP = 14,
        RAW_PUBLIC_KEY = 15,
    }
}

registry! {
    /// CFG Type (RFC 7296 3.15).
    ConfigType(u8) { CFG_REQUEST = 1, CFG_REPLY = 2, CFG_SET = 3, CFG_ACK = 4 }
}

registry! {
    /// Configuration Payload Attribute Type (RFC 7296 3.15.1, RFC 5739, RFC 7651, RFC 8598, RFC 9464).
    ConfigAttributeType(u16) {
        INTERNAL_IP4_ADDRESS = 1, INTERNAL_IP4_NETMASK = 2, INTERNAL_IP4_DNS = 3, INTERNAL_IP4_NBNS = 4,
        INTERNAL_IP4_DHCP = 6, APPLICATION_VERSION = 7, INTERNAL_IP6_ADDRESS = 8, INTERNAL_IP6_DNS = 10,
        INTERNAL_IP6_DHCP = 12, INTERNAL_IP4_SUBNET = 13, SUPPORTED_ATTRIBUTES = 14, INTERNAL_IP6_SUBNET = 15,
        INTERNAL_IP6_LINK = 17, INTERNAL_IP6_PREFIX = 18, P_CSCF_IP4_ADDRESS = 20, P_CSCF_IP6_ADDRESS = 21,
        INTERNAL_DNS_DOMAIN = 25, INTERNAL_DNSSEC_TA = 26, ENCDNS_IP4 = 27, ENCDNS_IP6 = 28,
        ENCDNS_DIGEST_INFO = 29,
    }
}

registry! {
    /// Notify Message Type (RFC 7296 3.10.1 and the extensions registered since, and the
    /// private ones of MOBIKE-X). Below 16384: errors.
    NotifyType(u16) {
        UNSUPPORTED_CRITICAL_PAYLOAD = 1, INVALID_IKE_SPI = 4, INVALID_MAJOR_VERSION = 5, INVALID_SYNTAX = 7,
        INVALID_MESSAGE_ID = 9, INVALID_SPI = 11, NO_PROPOSAL_CHOSEN = 14, INVALID_KE_PAYLOAD = 17,
        AUTHENTICATION_FAILED = 24, SINGLE_PAIR_REQUIRED = 34, NO_ADDITIONAL_SAS = 35,
        INTERNAL_ADDRESS_FAILURE = 36, FAILED_CP_REQUIRED = 37, TS_UNACCEPTABLE = 38, INVALID_SELECTORS = 39,
        TEMPORARY_FAILURE = 43, CHILD_SA_NOT_FOUND = 44,
        // RFC 4555, RFC 5026, RFC 9370, RFC 9611
        UNACCEPTABLE_ADDRESSES = 40, UNEXPECTED_NAT_DETECTED = 41, USE_ASSIGNED_HOA = 42, STATE_NOT_FOUND = 47,
        TS_MAX_QUEUE = 48,
        // RFC 7296
        INITIAL_CONTACT = 16384, SET_WINDOW_SIZE = 16385, ADDITIONAL_TS_POSSIBLE = 16386,
        IPCOMP_SUPPORTED = 16387, NAT_DETECTION_SOURCE_IP = 16388, NAT_DETECTION_DESTINATION_IP = 16389,
        COOKIE = 16390, USE_TRANSPORT_MODE = 16391, HTTP_CERT_LOOKUP_SUPPORTED = 16392, REKEY_SA = 16393,
        ESP_TFC_PADDING_NOT_SUPPORTED = 16394, NON_FIRST_FRAGMENTS_ALSO = 16395,
        // RFC 4555
        MOBIKE_SUPPORTED = 16396, ADDITIONAL_IP4_ADDRESS = 16397, ADDITIONAL_IP6_ADDRESS = 16398,
        NO_ADDITIONAL_ADDRESSES = 16399, UPDATE_SA_ADDRESSES = 16400, COOKIE2 = 16401, NO_NATS_ALLOWED = 16402,
        // RFC 4478, RFC 4739, RFC 5685
        AUTH_LIFETIME = 16403, MULTIPLE_AUTH_SUPPORTED = 16404, ANOTHER_AUTH_FOLLOWS = 16405,
        REDIRECT_SUPPORTED = 16406, REDIRECT = 16407, REDIRECTED_FROM = 16408,
        // RFC 5723
        TICKET_LT_OPAQUE = 16409, TICKET_REQUEST = 16410, TICKET_ACK = 16411, TICKET_NACK = 16412,
        TICKET_OPAQUE = 16413,
        // RFC 5739, RFC 5840, RFC 5857, RFC 5998, RFC 6023, RFC 6290
        LINK_ID = 16414, USE_WESP_MODE = 16415, ROHC_SUPPORTED = 16416, EAP_ONLY_AUTHENTICATION = 16417,
        CHILDLESS_IKEV2_SUPPORTED = 16418, QUICK_CRASH_DETECTION = 16419,
        // RFC 6311
        IKEV2_MESSAGE_ID_SYNC_SUPPORTED = 16420, IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED = 16421,
        IKEV2_MESSAGE_ID_SYNC = 16422, IPSEC_REPLAY_COUNTER_SYNC = 16423,
        // RFC 6467, RFC 6631, RFC 6867
        SECURE_PASSWORD_METHODS = 16424, PSK_PERSIST = 16425, PSK_CONFIRM = 16426, ERX_SUPPORTED = 16427,
        // RFC 7383, RFC 7427, RFC 7791, RFC 8019, RFC 8784
        IKEV2_FRAGMENTATION_SUPPORTED = 16430, SIGNATURE_HASH_ALGORITHMS = 16431,
        CLONE_IKE_SA_SUPPORTED = 16432, CLONE_IKE_SA = 16433, PUZZLE = 16434, USE_PPK = 16435,
        PPK_IDENTITY = 16436, NO_PPK_AUTH = 16437,
        // RFC 9242, RFC 8983, RFC 9370, RFC 9347, RFC 9593, RFC 9611
        INTERMEDIATE_EXCHANGE_SUPPORTED = 16438, IP4_ALLOWED = 16439, IP6_ALLOWED = 16440,
        ADDITIONAL_KEY_EXCHANGE = 16441, USE_AGGFRAG = 16442, SUPPORTED_AUTH_METHODS = 16443,
        SA_RESOURCE_INFO = 16444,
        // MOBIKE-X draft 11.3.7, 11.2.9; the last two have no number there. The draft takes them from the range
        // for private use, in which other implementations mean other things by them.
        MOBIKE_UNSUPPORTED_VERSION = 8192, DOES_NOT_FIT_SPD = 8193, UNACCEPTABLE_PARAMETER = 8194,
        UNEXPECTED_PAYLOAD_AFTER_SELECTOR = 8195, UNMATCHED_SELECTOR_SET = 8196,
        SELECTOR = 40961, END_OF_SELECTOR = 40962, ADD_SA_ADDRESS = 40963, REMOVE_SA_ADDRESS = 40964,
        CLOSING_SA = 40965,
        /// It announces that this host answers encrypted ESP echo requests; ours, and sent only once version 2
        /// of MOBIKE is agreed.
        ECHO_SUPPORTED = 40966,
    }
}

impl NotifyType {
    /// What ADDITIONAL_IP6_ADDRESS is in MOBIKE-X, for addresses of either family (draft 5.5).
    pub const ADDITIONAL_IP_ADDRESS: Self = Self::ADDITIONAL_IP6_ADDRESS;

    /// Whether it reports an error (RFC 7296 3.10.1).
    pub fn is_error(self) -> bool {
        self.0 < 16384
    }

    /// The short form that logs of IPsec daemons use, e.g. `NATD_S_IP`.
    pub fn short_name(self) -> String {
        let short = match self {
            Self::UNSUPPORTED_CRITICAL_PAYLOAD => "CRIT",
            Self::INVALID_IKE_SPI => "INVAL_IKE_SPI",
            Self::INVALID_MAJOR_VERSION => "INVAL_MAJOR",
            Self::INVALID_SYNTAX => "INVAL_SYN",
            Self::INVALID_MESSAGE_ID => "INVAL_MID",
            Self::INVALID_SPI => "INVAL_SPI",
            Self::NO_PROPOSAL_CHOSEN => "NO_PROP",
            Self::INVALID_KE_PAYLOAD => "INVAL_KE",
            Self::AUTHENTICATION_FAILED => "AUTH_FAILED",
            Self::SINGLE_PAIR_REQUIRED => "SINGLE_PAIR",
            Self::NO_ADDITIONAL_SAS => "NO_ADD_SAS",
            Self::INTERNAL_ADDRESS_FAILURE => "INT_ADDR_FAIL",
            Self::FAILED_CP_REQUIRED => "FAIL_CP_REQ",
            Self::TS_UNACCEPTABLE => "TS_UNACCEPT",
            Self::INVALID_SELECTORS => "INVAL_SEL",
            Self::UNACCEPTABLE_ADDRESSES => "UNACCEPT_ADDR",
            Self::UNEXPECTED_NAT_DETECTED => "UNEXPECT_NAT",
            Self::TEMPORARY_FAILURE => "TEMP_FAIL",
            Self::CHILD_SA_NOT_FOUND => "NO_CHILD_SA",
            Self::INITIAL_CONTACT => "INIT_CONTACT",
            Self::SET_WINDOW_SIZE => "SET_WINSIZE",
            Self::ADDITIONAL_TS_POSSIBLE => "ADD_TS_POSS",
            Self::IPCOMP_SUPPORTED => "IPCOMP_SUP",
            Self::NAT_DETECTION_SOURCE_IP => "NATD_S_IP",
            Self::NAT_DETECTION_DESTINATION_IP => "NATD_D_IP",
            Self::USE_TRANSPORT_MODE => "USE_TRANSP",
            Self::HTTP_CERT_LOOKUP_SUPPORTED => "HTTP_CERT_LOOK",
            Self::ESP_TFC_PADDING_NOT_SUPPORTED => "ESP_TFC_PAD_N",
            Self::NON_FIRST_FRAGMENTS_ALSO => "NON_FIRST_FRAG",
            Self::MOBIKE_SUPPORTED => "MOBIKE_SUP",
            Self::ADDITIONAL_IP4_ADDRESS => "ADD_4_ADDR",
            Self::ADDITIONAL_IP6_ADDRESS => "ADD_6_ADDR",
            Self::NO_ADDITIONAL_ADDRESSES => "NO_ADD_ADDR",
            Self::UPDATE_SA_ADDRESSES => "UPD_SA_ADDR",
            Self::NO_NATS_ALLOWED => "NO_NATS",
            Self::AUTH_LIFETIME => "AUTH_LFT",
            Self::MULTIPLE_AUTH_SUPPORTED => "MULT_AUTH",
            Self::ANOTHER_AUTH_FOLLOWS => "AUTH_FOLLOWS",
            Self::REDIRECT_SUPPORTED => "REDIR_SUP",
            Self::REDIRECT => "REDIR",
            Self::REDIRECTED_FROM => "REDIR_FROM",
            Self::EAP_ONLY_AUTHENTICATION => "EAP_ONLY",
            Self::CHILDLESS_IKEV2_SUPPORTED => "CHDLESS_SUP",
            Self::QUICK_CRASH_DETECTION => "CRASH_DET",
            Self::IKEV2_MESSAGE_ID_SYNC_SUPPORTED => "MSG_ID_SYN_SUP",
            Self::IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED => "RPL_CTR_SYN_SUP",
            Self::IKEV2_MESSAGE_ID_SYNC => "MSG_ID_SYN",
            Self::IPSEC_REPLAY_COUNTER_SYNC => "RPL_CTR_SYN",
            Self::IKEV2_FRAGMENTATION_SUPPORTED => "FRAG_SUP",
            Self::SIGNATURE_HASH_ALGORITHMS => "HASH_ALG",
            Self::PPK_IDENTITY => "PPK_ID",
            Self::NO_PPK_AUTH => "NO_PPK",
            Self::INTERMEDIATE_EXCHANGE_SUPPORTED => "INTERMEDIATE_SUP",
            Self::ADDITIONAL_KEY_EXCHANGE => "ADD_KE",
            Self::MOBIKE_UNSUPPORTED_VERSION => "MOBIKE_UNSUP_VER",
            Self::DOES_NOT_FIT_SPD => "NOT_FIT_SPD",
            Self::UNACCEPTABLE_PARAMETER => "UNACCEPT_PARAM",
            Self::UNEXPECTED_PAYLOAD_AFTER_SELECTOR => "UNEXPECT_PAYLOAD",
            Self::UNMATCHED_SELECTOR_SET => "UNMATCHED_SEL",
            Self::END_OF_SELECTOR => "END_SELECTOR",
            Self::ADD_SA_ADDRESS => "ADD_SA_ADDR",
            Self::REMOVE_SA_ADDRESS => "REM_SA_ADDR",
            Self::ECHO_SUPPORTED => "ECHO_SUP",
            other => return other.to_string(),
        };
        short.to_string()
    }
}

impl ConfigAttributeType {
    /// The short form that logs of IPsec daemons use, e.g. `ADDR`.
    pub fn short_name(self) -> String {
        let short = match self {
            Self::INTERNAL_IP4_ADDRESS => "ADDR",
            Self::INTERNAL_IP4_NETMASK => "MASK",
            Self::INTERNAL_IP4_DNS => "DNS",
            Self::INTERNAL_IP4_NBNS => "NBNS",
            Self::INTERNAL_IP4_DHCP => "DHCP",
            Self::APPLICATION_VERSION => "VER",
            Self::INTERNAL_IP6_ADDRESS => "ADDR6",
            Self::INTERNAL_IP6_DNS => "DNS6",
            Self::INTERNAL_IP6_DHCP => "DHCP6",
            Self::INTERNAL_IP4_SUBNET => "SUBNET",
            Self::SUPPORTED_ATTRIBUTES => "SUP",
            Self::INTERNAL_IP6_SUBNET => "SUBNET6",
            Self::INTERNAL_DNS_DOMAIN => "DOMAIN",
            other => return other.to_string(),
        };
        short.to_string()
    }
}
