//! Load for an IKEv2 responder.
//!
//!     mobikex-ike-load setups LOCAL REMOTE COUNT [PARALLEL [HOLD]]
//!
//! sets up COUNT IKE SAs with a Child SA each, PARALLEL at a time (64), from the address LOCAL, then goes on answering for
//! HOLD seconds (0). Initiator n is `n.load.example` with the shared key `load` and has the inner address number n of
//! 10.0.0.0/8.
//!
//!     mobikex-ike-load flood TARGET RATE SECONDS
//!
//! sends RATE well-formed IKE_SA_INIT requests a second to TARGET, each with an invented source, SPI, nonce and key.
//!
//! Either prints one JSON object in the end. Needs root (ports 500 and 4500, a raw socket) and belongs into a network
//! namespace.

use std::process::ExitCode;

use mobikex_benches::{flood, setups};

const USAGE: &str = "usage: mobikex-ike-load setups LOCAL REMOTE COUNT [PARALLEL [HOLD]]
       mobikex-ike-load flood TARGET RATE SECONDS";

fn run(args: &[&str]) -> Result<String, String> {
    let number = |text: &str| text.parse::<u32>().map_err(|_| format!("'{text}' is not a number\n{USAGE}"));
    let addr = |text: &str| text.parse().map_err(|_| format!("'{text}' is not an IPv4 address\n{USAGE}"));
    match args {
        ["setups", local, remote, count, rest @ ..] if rest.len() <= 2 => setups::run(
            addr(local)?,
            addr(remote)?,
            number(count)?,
            rest.first().map_or(Ok(64), |text| number(text))?,
            rest.get(1).map_or(Ok(0), |text| number(text))?,
        )
        .map_err(|error| error.to_string()),
        ["flood", target, rate, seconds] => {
            flood::run(addr(target)?, number(rate)?, number(seconds)?).map_err(|error| error.to_string())
        }
        _ => Err(USAGE.into()),
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("mobikex-ike-load: {error}");
            ExitCode::FAILURE
        }
    }
}
