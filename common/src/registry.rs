//! One macro for every open number registry of the protocols.

/// Declares a newtype over an IANA-style registry: known values print their registered name, unknown values
/// print as hex, and every value survives a round trip through the wire format.
macro_rules! registry {
    ($(#[$meta:meta])* $name:ident($int:ty) { $($(#[$vmeta:meta])* $konst:ident = $value:expr),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl $name {
            $(
                #[doc = concat!("Registered value ", stringify!($value), ".")]
                $(#[$vmeta])*
                pub const $konst: Self = Self($value);
            )*

            /// The registered name, if the value is a known one.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $( $value => Some(stringify!($konst)), )*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{:#x}", self.0),
                }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({})", stringify!($name), self)
            }
        }

        impl From<$int> for $name {
            fn from(value: $int) -> Self {
                Self(value)
            }
        }
    };
}

pub(crate) use registry;
