//! `mobikex dissect` as a program: files, standard input, exit codes.

#![allow(clippy::unwrap_used)] // A test that cannot go on should say where.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use hex_literal::hex;

/// Raw IPv4, UDP 4500: an empty INFORMATIONAL request whose Encrypted payload holds nothing that could be opened, then
/// a NAT keepalive.
const CAPTURE: &[u8] = &hex!(
    "d4c3b2a1 0200 0400 00000000 00000000 00000400 65000000"
    "00f15365 00000000 41000000 41000000"
    "45000041 00004000 40110000 c0000201 c6336407 11941194 002d0000 00000000"
    "0000000000000001 0000000000000002 2e202508 00000003 00000021 00000005aa"
    "01f15365 00000000 1d000000 1d000000"
    "4500001d 00004000 40110000 c6336407 c0000201 11941194 00090000 ff"
);

fn dissect(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mobikex"))
        .arg("dissect")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended without reading; its exit code tells.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// A file with a name of its own, gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("mobikex-dissect-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_capture_is_shown_from_a_file_or_from_standard_input() {
    let file = Scratch::new("capture", CAPTURE);
    let expected = "\
1 0.000000 192.0.2.1:4500 > 198.51.100.7:4500 INFORMATIONAL request 3 [ SK ]
    header: version 2.0, spi_i 0000000000000001, spi_r 0000000000000002, from the original initiator, 33 octets
    SK: aa
        not decrypted: no keys for this IKE SA
2 1.000000 198.51.100.7:4500 > 192.0.2.1:4500 NAT keepalive
";
    for (argument, input) in [(file.path(), &[][..]), ("-", CAPTURE)] {
        let output = dissect(&[argument], input);
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    }
    let output = dissect(&["-", "--json"], CAPTURE);
    let lines: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[1]["number"], &lines[1]["summary"]), (&2.into(), &"NAT keepalive".into()));
}

#[test]
fn failures_have_their_exit_codes() {
    let code = |arguments: &[&str], input: &[u8]| dissect(arguments, input).status.code();
    assert_eq!(code(&[], b""), Some(2));
    assert_eq!(code(&["/no/such/file"], b""), Some(1));
    assert_eq!(code(&["-"], b"no capture"), Some(1));
    assert_eq!(code(&["-", "--keys", "/no/such/file"], CAPTURE), Some(1));
    // What could be read is shown before the failure.
    let output = dissect(&["-"], &CAPTURE[..CAPTURE.len() - 1]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("INFORMATIONAL request 3"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("-: the capture file is cut short"));

    let keys = Scratch::new("keys", b"\n1,2,0011,0011,\"3DES [RFC2451]\",00,00,\"HMAC_SHA1_96 [RFC2404]\"\n");
    let output = dissect(&["-", "--keys", keys.path()], CAPTURE);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("line 2 is of an algorithm that is not known here")
    );
    let keys = Scratch::new("bad-keys", b"0011223344\n");
    let output = dissect(&["-", "--keys", keys.path()], CAPTURE);
    assert_eq!(output.status.code(), Some(1));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("0011223344"), "a line may be a key");
}
