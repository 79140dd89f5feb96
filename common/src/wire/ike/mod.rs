//! IKEv2 messages (RFC 7296 section 3): header, payload chain, payloads.

mod configuration;
mod dn;
mod header;
mod id;
mod payload;
mod registries;
mod sa;
mod ts;

pub use configuration::{ConfigAttribute, ConfigPayload, ConfigValue};
pub use header::{Flags, Header};
pub use id::Identification;
pub use payload::{AuthPayload, Delete, Notify, Payload, emit_chain, parse_chain};
pub use registries::{
    AuthMethod, CertEncoding, ConfigAttributeType, ConfigType, ExchangeType, IdType, NotifyType, PayloadType,
    ProtocolId,
};
pub use sa::{Proposal, Transform};

#[cfg(test)]
mod tests;
