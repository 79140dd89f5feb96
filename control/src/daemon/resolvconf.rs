//! The DNS servers behind peers, in a file of the form of resolv.conf(5) that the operator has named.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::Path;

/// Puts the file in the place of the one before, as a whole; without servers and domains there is none.
pub(super) fn write(path: &Path, servers: &[IpAddr], domains: &[String]) -> io::Result<()> {
    if servers.is_empty() && domains.is_empty() {
        return remove(path);
    }
    let mut text = String::from("# Written by mobikex: DNS servers behind its peers.\n");
    // Writing to a String cannot fail.
    if !domains.is_empty() {
        let _ = writeln!(text, "search {}", domains.join(" "));
    }
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let new = path.with_file_name(name);
    // Not through what somebody else may have put there.
    remove(&new)?;
    OpenOptions::new().write(true).create_new(true).open(&new)?.write_all(text.as_bytes())?;
    fs::rename(&new, path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_there_as_long_as_there_are_servers() {
        let path = std::env::temp_dir().join(format!("mobikex-resolvconf-{}", std::process::id()));
        let servers = ["10.2.0.53".parse().unwrap(), "fd02::53".parse().unwrap()];
        write(&path, &servers, &["example.org".to_string(), "corp".to_string()]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            text.ends_with("\nsearch example.org corp\nnameserver 10.2.0.53\nnameserver fd02::53\n"),
            "{text}"
        );
        write(&path, &servers[..1], &[]).unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains("search"));
        write(&path, &[], &[]).unwrap();
        assert!(!path.exists());
        write(&path, &[], &[]).unwrap();
        assert!(write(Path::new("/nonexistent/resolv.conf"), &servers, &[]).is_err());
    }
}
