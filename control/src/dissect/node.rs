//! What was found, as a tree of names and values.

use std::fmt;

use serde::Serialize;

/// A name, its value, and what belongs to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Node {
    /// What it is.
    pub name: String,
    /// What it says; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// Its parts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inside: Vec<Node>,
}

impl Node {
    /// A name with a value.
    pub(super) fn new(name: impl Into<String>, value: impl fmt::Display) -> Self {
        Self { name: name.into(), value: value.to_string(), inside: Vec::new() }
    }

    /// Octets in hexadecimal.
    pub(super) fn octets(name: impl Into<String>, octets: &[u8]) -> Self {
        Self::new(name, hex(octets))
    }

    /// The node with parts.
    pub(super) fn with(self, inside: Vec<Node>) -> Self {
        Self { inside, ..self }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        write!(f, "{:1$}{2}", "", depth * 4, self.name)?;
        if !self.value.is_empty() {
            write!(f, ": {}", self.value)?;
        }
        writeln!(f)?;
        self.inside.iter().try_for_each(|node| node.write(f, depth + 1))
    }
}

impl fmt::Display for Node {
    /// A line for each node, indented by its depth, from one on.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 1)
    }
}

/// Octets in hexadecimal.
pub(super) fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Octets as text, with everything escaped that a terminal could take for more than text.
pub(super) fn text(octets: &[u8]) -> String {
    octets.escape_ascii().to_string()
}
