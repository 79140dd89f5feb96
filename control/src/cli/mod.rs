//! The command line.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no daemon answers.

mod address;
mod check;
mod client;
mod dissect;

use std::fmt;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::daemon::{self, Options};
use crate::logging::{self, LogFilter, LogFormat};
use crate::protocol::{DEFAULT_SOCKET, Request, Target};

/// Userspace IKEv2 and ESP.
#[derive(Parser, Debug)]
#[command(name = "mobikex", version, arg_required_else_help = true)]
struct Cli {
    /// The daemon's control socket.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the daemon in the foreground.
    Run(Box<RunArgs>),
    /// Read a configuration and say what would be done.
    Check(check::CheckArgs),
    /// Show the SAs.
    Sas(ViewArgs),
    /// Show the certificates and keys that are loaded.
    Certs(ViewArgs),
    /// Show the configured connections.
    Conns(ViewArgs),
    /// Show the pools of virtual addresses for peers.
    Pools(PoolsArgs),
    /// Show counters, with the reasons of dropped packets.
    Stats(ViewArgs),
    /// Set up a connection, or one child of it, and wait until it is up or has failed.
    Up(TargetArgs),
    /// Take down a connection, or one child of it, and wait until it is gone.
    Down(TargetArgs),
    /// Rekey the IKE SA of a connection, or one child of it, and wait for the new one.
    Rekey(TargetArgs),
    /// Change which of our addresses the SAs use, and print the peer's verdict (MOBIKE-X).
    #[command(subcommand)]
    Address(address::AddressCommand),
    /// Show what is in a capture, decrypted where there are keys.
    Dissect(dissect::DissectArgs),
    /// Show events as they happen.
    Monitor {
        /// One object a line.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Debug)]
struct RunArgs {
    /// Configuration file.
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Group that may use the control socket too: a name or a number.
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// Write the keys of all SAs to this file, for reading captures: with them all traffic can be decrypted.
    #[arg(long, value_name = "FILE")]
    save_keys: Option<PathBuf>,
    /// What to log: a level (error, warn, info, debug, trace), and levels for groups, as in info,IKE=debug.
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: LogFilter,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Args, Debug)]
struct ViewArgs {
    /// Data rather than text.
    #[arg(long)]
    json: bool,
    /// Show it again every so many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
}

#[derive(Args, Debug)]
struct PoolsArgs {
    #[command(flatten)]
    view: ViewArgs,
    /// With every lease: whose it is, and whether it is in use.
    #[arg(long)]
    leases: bool,
}

#[derive(Args, Debug)]
struct TargetArgs {
    /// NAME or NAME/CHILD.
    name: Target,
    /// One object with the outcome at the end, nothing else.
    #[arg(long)]
    json: bool,
    /// Give up waiting after so many seconds; 0 = never. What was started goes on.
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
}

/// Why a command ended badly; each kind has its exit code.
#[derive(Debug)]
enum Failure {
    /// It was understood and tried.
    Failed(String),
    /// No daemon answers.
    Unreachable(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(text) | Self::Unreachable(text) => f.write_str(text),
        }
    }
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    // clap itself leaves with code 2 on wrong usage.
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "mobikex: {failure}");
            ExitCode::from(match failure {
                Failure::Failed(_) => 1,
                Failure::Unreachable(_) => 3,
            })
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let Cli { socket, command } = cli;
    let view = |make: &dyn Fn(bool) -> Request, args: ViewArgs| {
        client::view(&socket, &make(args.json), args.watch.map(Duration::from_secs))
    };
    let operate = |make: fn(Target) -> Request, args: TargetArgs| {
        let timeout = (args.timeout > 0).then(|| Duration::from_secs(args.timeout));
        client::operate(&socket, &make(args.name), args.json, timeout)
    };
    match command {
        Command::Run(args) => run(socket.clone(), *args),
        Command::Check(args) => check::check(&args),
        Command::Sas(args) => view(&|json| Request::Sas { json }, args),
        Command::Certs(args) => view(&|json| Request::Certs { json }, args),
        Command::Conns(args) => view(&|json| Request::Conns { json }, args),
        Command::Pools(PoolsArgs { view: args, leases }) => {
            view(&|json| Request::Pools { json, leases }, args)
        }
        Command::Stats(args) => view(&|json| Request::Stats { json }, args),
        Command::Up(args) => operate(Request::Up, args),
        Command::Down(args) => operate(Request::Down, args),
        Command::Rekey(args) => operate(Request::Rekey, args),
        Command::Address(command) => address::address(&socket, command),
        Command::Dissect(args) => dissect::dissect(&args),
        Command::Monitor { json } => client::monitor(&socket, json),
    }
}

fn run(socket: PathBuf, args: RunArgs) -> Result<(), Failure> {
    let socket_group = args.socket_group.as_deref().map(group_id).transpose()?;
    let tap = logging::init(args.log, args.log_format);
    let RunArgs { config, save_keys, .. } = args;
    daemon::run(&Options { config, socket, socket_group, save_keys, tap })
        .map_err(|error| Failure::Failed(error.to_string()))
}

fn group_id(name: &str) -> Result<u32, Failure> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| fields.get(2)?.parse().ok())
        .ok_or_else(|| Failure::Failed(format!("there is no group '{name}'")))
}

/// Prints to standard output; false when nobody reads it any more, which is no failure (`mobikex sas | head`).
fn print(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_wrong_usage_is_2() {
        Cli::command().debug_assert();
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert_eq!(parse("mobikex up /net").unwrap_err().exit_code(), 2);
        assert_eq!(parse("mobikex run").unwrap_err().exit_code(), 2);
        assert_eq!(parse("mobikex run -c x --log IKEE=debug").unwrap_err().exit_code(), 2);
        assert!(parse("mobikex run -c x --log info,IKE=debug --log-format json").is_ok());
        let cli = parse("mobikex sas --json --watch --socket /run/a").unwrap();
        assert_eq!(cli.socket, PathBuf::from("/run/a"));
        assert!(matches!(cli.command, Command::Sas(ViewArgs { json: true, watch: Some(1) })));
        assert!(matches!(
            parse("mobikex stats").unwrap().command,
            Command::Stats(ViewArgs { watch: None, .. })
        ));
    }

    #[test]
    fn groups_are_names_or_numbers() {
        assert_eq!(group_id("root").ok(), Some(0));
        assert_eq!(group_id("123").ok(), Some(123));
        assert!(group_id("no such group").is_err());
    }
}
