//! The file into which `mobikex run --save-keys` writes the keys of all SAs, so that captures can be read.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use mobikex_common::crypto::Secret;
use mobikex_common::sa::ChildSaParams;
use tracing::{error, warn};

use super::DaemonError;
use crate::dissect::{EspKeys, IkeKeys};

/// Open for as long as the daemon runs.
pub(super) struct KeyFile {
    path: PathBuf,
    file: File,
    /// It could not be written to, which was told.
    failed: bool,
}

impl KeyFile {
    /// Creates the file for our user alone, or goes on with one that is so already. Nothing else will do: no other
    /// kind of file, nobody else's, and none that others may read.
    pub(super) fn open(path: &Path) -> Result<Self, DaemonError> {
        let refused = |reason: String| DaemonError::SaveKeys { path: path.display().to_string(), reason };
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            // A link may lead to a place of somebody else's choosing, and a pipe would wait for a reader.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ELOOP) => refused("it is a symbolic link".into()),
                _ => refused(error.to_string()),
            })?;
        let found = file.metadata().map_err(|error| refused(error.to_string()))?;
        if !found.is_file() {
            return Err(refused("it is no regular file".into()));
        }
        if found.uid() != own_user().map_err(|error| refused(error.to_string()))? {
            return Err(refused(format!("it belongs to user {}", found.uid())));
        }
        if found.mode() & 0o077 != 0 {
            let mode = found.mode() & 0o777;
            return Err(refused(format!("it has mode {mode:03o}, and others than its owner may use it")));
        }
        warn!(
            target: "CFG",
            "ALL KEYS ARE SAVED IN {}: whoever reads that file can decrypt all traffic of this daemon, also later",
            path.display()
        );
        Ok(Self { path: path.into(), file, failed: false })
    }

    /// Adds the keys of an IKE SA.
    pub(super) fn ike(&mut self, keys: &IkeKeys) {
        self.write(&keys.line());
    }

    /// Adds the keys of both directions of a Child SA.
    pub(super) fn child(&mut self, params: &ChildSaParams) {
        for (spi, keys) in [(params.spi_in, &params.keys_in), (params.spi_out, &params.keys_out)] {
            let keys = EspKeys {
                spi,
                cipher: params.suite.cipher,
                integrity: params.suite.integrity,
                encryption: Secret::from(keys.encryption.clone()),
                authentication: Secret::from(keys.integrity.clone()),
                esn: Some(params.suite.esn),
            };
            self.write(&keys.lines());
        }
    }

    fn write(&mut self, lines: &str) {
        // One call for all: nobody ever reads half a line.
        if let Err(error) = self.file.write_all(lines.as_bytes())
            && !std::mem::replace(&mut self.failed, true)
        {
            error!(target: "CFG", "keys cannot be saved in {}: {error}", self.path.display());
        }
    }
}

/// Whose files are ours: the owner of what we create.
fn own_user() -> io::Result<u32> {
    Ok(std::fs::metadata("/proc/self")?.uid())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use mobikex_common::alg::{Cipher, KeyBits};
    use mobikex_common::spi::IkeSpi;

    use super::*;
    use crate::dissect::Keys;

    /// A folder of its own, gone at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("mobikex-keys-{}-{name}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn keys() -> IkeKeys {
        let key = |octet| Secret::from(vec![octet; 36]);
        IkeKeys {
            initiator_spi: IkeSpi(1),
            responder_spi: IkeSpi(2),
            cipher: Cipher::AesGcm16(KeyBits::B256),
            integrity: None,
            encryption: [key(3), key(4)],
            authentication: [Secret::from(vec![]), Secret::from(vec![])],
        }
    }

    #[test]
    fn the_file_is_the_owners_alone_and_grows() {
        let dir = Scratch::new("grows");
        let path = dir.at("keys");
        for expected in 1..=2 {
            KeyFile::open(&path).unwrap().ike(&keys());
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            let read = Keys::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
            assert_eq!((read.ike.len(), read.skipped.len()), (expected, 0));
            assert_eq!(read.ike[0].encryption, keys().encryption);
        }
    }

    #[test]
    fn a_file_that_others_could_read_or_have_made_is_refused() {
        let dir = Scratch::new("refused");
        let at = |name: &str| dir.at(name);
        std::fs::write(at("open"), "").unwrap();
        std::fs::set_permissions(at("open"), std::fs::Permissions::from_mode(0o640)).unwrap();
        KeyFile::open(&at("mine")).unwrap();
        symlink(at("mine"), at("link")).unwrap();
        for (path, reason) in
            [(at("open"), "mode 640"), (at("link"), "symbolic link"), ("/dev/null".into(), "no regular file")]
        {
            let error = KeyFile::open(&path).err().unwrap().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(KeyFile::open(&at("missing/keys")).is_err());
        if own_user().unwrap() == 0 {
            std::os::unix::fs::chown(at("mine"), Some(65_534), None).unwrap();
            assert!(KeyFile::open(&at("mine")).err().unwrap().to_string().contains("user 65534"));
        }
    }
}
