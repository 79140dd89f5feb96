//! The IKEv2 engine (RFC 7296), without I/O and without a clock.
//!
//! [`Endpoint`] owns all IKE SAs. A datagram finds its SA by SPI (`endpoint`), passes the message window, the
//! integrity check and the table of states (`dispatch`), then the table of required payloads (`rules`), and only
//! then a handler: `initiator` and `responder` for IKE_SA_INIT, `auth_initiator` and `auth_responder` for IKE_AUTH,
//! `create_child`, `answer_child` and `rekey_ike` for CREATE_CHILD_SA, `informational` for the rest. A handler takes a `Protected` proof
//! that only the integrity check makes, and an SA is established only with an [`AuthenticatedPeer`] that only the AUTH
//! check makes.
//! Which of several Child SAs sends is `senders`' to say. What an SA wants done leaves through [`Output`].

mod addresses;
mod answer_child;
mod auth;
mod auth_initiator;
mod auth_responder;
mod auth_serving;
mod child;
mod childless;
mod configuration;
#[cfg(test)]
mod configuration_tests;
mod cookie;
mod create_child;
#[cfg(test)]
mod create_child_tests;
mod crypt;
mod ctx;
mod dispatch;
mod eap;
mod eap_initiator;
mod eap_responder;
#[cfg(test)]
mod eap_tests;
mod endpoint;
mod error;
mod fragments;
mod hints;
mod inactivity;
mod informational;
mod initiator;
mod internal;
mod keys;
mod mappings;
mod mobike;
mod mobike_x;
mod mobility;
mod narrow;
mod network;
mod notices;
mod output;
mod pace;
mod path_rate;
mod path_table;
mod path_test;
mod pools;
mod probes;
mod prove;
mod reassembly;
mod reauth;
mod rekey_ike;
mod resources;
mod responder;
mod roles;
mod rounds;
#[cfg(test)]
mod rounds_tests;
mod routability;
mod routes;
mod rules;
mod sa;
mod select;
mod senders;
#[cfg(test)]
mod senders_tests;
mod sets;
mod signature;
mod starts;
mod tasks;
#[cfg(test)]
mod testing;
mod timers;
mod updown;
mod versions;
mod window;

pub use auth::AuthenticatedPeer;
pub use endpoint::{AddressAction, ChildEvent, Command, CommandError, Endpoint, IkeCounters};
pub use error::IkeError;
pub use internal::Given;
pub use network::LocalAddress;
pub use output::{Alternate, ChildSaView, Event, IkeSaView, OuterView, Output};
pub use path_table::{Health, PathView};
pub use pools::{LeaseView, PoolView};
pub use resources::ResourceView;
pub use rounds::RoundView;
pub use updown::{Run, Script};
pub use versions::Version;
