//! What the command line and the daemon say to each other over the Unix socket: one JSON object a line.
//!
//! A client sends a [`Request`] and reads [`Reply`] lines until a final one ([`Reply::is_final`]). `monitor` has
//! none: it goes on until the client leaves.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The socket's place unless the operator says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/mobikex.sock";

/// The longest request line.
pub const REQUEST_MAX: usize = 4096;

/// A connection, or one child of it, as in `home` or `home/net`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Connection.
    pub connection: String,
    /// Child.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<String>,
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (connection, child) = match text.split_once('/') {
            Some((connection, child)) => (connection, Some(child)),
            None => (text, None),
        };
        if connection.is_empty() || child.is_some_and(str::is_empty) {
            return Err("expected NAME or NAME/CHILD".to_string());
        }
        Ok(Self { connection: connection.to_string(), child: child.map(str::to_string) })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.connection)?;
        self.child.as_ref().map_or(Ok(()), |child| write!(f, "/{child}"))
    }
}

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    /// The SAs, and the connections that have none.
    Sas {
        /// Data rather than text.
        #[serde(default)]
        json: bool,
    },
    /// The certificates and keys that are loaded.
    Certs {
        /// Data rather than text.
        #[serde(default)]
        json: bool,
    },
    /// The configured connections.
    Conns {
        /// Data rather than text.
        #[serde(default)]
        json: bool,
    },
    /// The pools of virtual addresses.
    Pools {
        /// Data rather than text.
        #[serde(default)]
        json: bool,
        /// With every lease.
        #[serde(default)]
        leases: bool,
    },
    /// Counters.
    Stats {
        /// Data rather than text.
        #[serde(default)]
        json: bool,
    },
    /// Set up, and wait for it.
    Up(Target),
    /// Take down, and wait for it.
    Down(Target),
    /// Rekey, and wait for it.
    Rekey(Target),
    /// Change our addresses in the peer's eyes, and wait for its verdict (MOBIKE-X).
    Address {
        /// The SAs: all of a connection, or those of a child.
        #[serde(flatten)]
        target: Target,
        /// What to do.
        action: AddressVerb,
        /// The address; for an update, the new one.
        addr: IpAddr,
        /// For an update, the address to be replaced; all if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        old: Option<IpAddr>,
        /// Only ask whether it would be done.
        #[serde(default)]
        check: bool,
        /// An address inside the tunnel.
        #[serde(default)]
        inner: bool,
    },
    /// Events as they happen.
    Monitor,
}

/// What to do with an address of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AddressVerb {
    /// Use it beside the others.
    Add,
    /// Use it no more.
    Remove,
    /// Use it instead of another.
    Update,
    /// Know of it, should the others fail.
    Additional,
}

/// What the daemon answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Reply {
    /// A view as text.
    Text {
        /// Lines for people.
        text: String,
        /// More lines follow.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// A view as data.
    Data {
        /// The object.
        data: Value,
        /// More follows: lists of the next object belong behind those of this one.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    },
    /// A line of the daemon's log while a command is carried out.
    Log {
        /// Group, e.g. `IKE`.
        group: String,
        /// The line.
        text: String,
    },
    /// Something happened.
    Event {
        /// For people.
        text: String,
        /// The event's fields.
        data: Value,
    },
    /// The command is done.
    Done,
    /// The command failed or could not be understood.
    Failed {
        /// Why.
        reason: String,
    },
}

impl Reply {
    /// Whether nothing more follows.
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Log { .. }
                | Self::Event { .. }
                | Self::Text { more: true, .. }
                | Self::Data { more: true, .. }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_format_is_stable() {
        for (request, line) in [
            (Request::Sas { json: true }, r#"{"command":"sas","json":true}"#),
            (Request::Monitor, r#"{"command":"monitor"}"#),
            (
                Request::Up("home/net".parse().unwrap()),
                r#"{"command":"up","connection":"home","child":"net"}"#,
            ),
            (Request::Down("home".parse().unwrap()), r#"{"command":"down","connection":"home"}"#),
            (
                Request::Address {
                    target: "home".parse().unwrap(),
                    action: AddressVerb::Update,
                    addr: "192.0.2.9".parse().unwrap(),
                    old: Some("192.0.2.1".parse().unwrap()),
                    check: false,
                    inner: false,
                },
                r#"{"command":"address","connection":"home","action":"update","addr":"192.0.2.9","old":"192.0.2.1","check":false,"inner":false}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), line);
            assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request);
        }
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"command":"conns"}"#).unwrap(),
            Request::Conns { json: false }
        );
        let failed = Reply::Failed { reason: "x".into() };
        assert_eq!(serde_json::to_string(&failed).unwrap(), r#"{"type":"failed","reason":"x"}"#);
        let part = |more| serde_json::to_string(&Reply::Text { text: "x".into(), more }).unwrap();
        assert_eq!(part(false), r#"{"type":"text","text":"x"}"#);
        assert_eq!(part(true), r#"{"type":"text","text":"x","more":true}"#);
        let data = |more| Reply::Data { data: Value::Null, more };
        assert!(data(false).is_final() && !data(true).is_final());
        assert!(failed.is_final() && !Reply::Log { group: "IKE".into(), text: "x".into() }.is_final());
    }

    #[test]
    fn targets_name_a_connection_or_a_child() {
        assert_eq!("home/net".parse::<Target>().unwrap().to_string(), "home/net");
        assert_eq!("home".parse::<Target>().unwrap().child, None);
        for bad in ["", "/net", "home/"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }
}
