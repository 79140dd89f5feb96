//! `mobikex dissect`: shows what is in a capture.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use zeroize::Zeroizing;

use super::{Failure, print};
use crate::dissect::{Capture, Dissector, Keys};

/// Octets of the largest file of keys.
const MAX_KEYS: u64 = 64 * 1024 * 1024;

#[derive(Args, Debug)]
pub(super) struct DissectArgs {
    /// Capture file, pcap or pcapng; - for standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Keys as lines of wireshark's ikev2_decryption_table and esp_sa.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// One object a packet and line.
    #[arg(long)]
    json: bool,
}

pub(super) fn dissect(args: &DissectArgs) -> Result<(), Failure> {
    let keys = args.keys.as_deref().map(keys).transpose()?.unwrap_or_default();
    let named = |error: &dyn std::fmt::Display| Failure::Failed(format!("{}: {error}", args.file.display()));
    let input: Box<dyn Read> = if args.file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(&args.file).map_err(|error| named(&error))?)
    };
    let mut capture = Capture::new(BufReader::new(input)).map_err(|error| named(&error))?;
    let mut dissector = Dissector::new(keys);
    while let Some(frame) = capture.next_frame().map_err(|error| named(&error))? {
        let packet = dissector.frame(&frame);
        let text = if args.json {
            serde_json::to_string(&packet).map_err(|error| named(&error))? + "\n"
        } else {
            packet.to_string()
        };
        if !print(&text) {
            break;
        }
    }
    Ok(())
}

fn keys(path: &Path) -> Result<Keys, Failure> {
    let named = |error: &dyn std::fmt::Display| Failure::Failed(format!("{}: {error}", path.display()));
    let mut text = Zeroizing::new(String::new());
    let file = File::open(path).map_err(|error| named(&error))?;
    file.take(MAX_KEYS).read_to_string(&mut text).map_err(|error| named(&error))?;
    let keys = Keys::parse(&text).map_err(|error| named(&error))?;
    for line in &keys.skipped {
        eprintln!("mobikex: {}: line {line} is of an algorithm that is not known here", path.display());
    }
    Ok(keys)
}
