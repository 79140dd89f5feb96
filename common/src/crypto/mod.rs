//! Cryptography: thin, uniform types over well-kept libraries.
