//! `mobikex check`: reads a configuration and says what would be done, without doing it.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{Failure, print};
use crate::config;
use crate::credentials::unix_now;

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// Configuration file.
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Data rather than text.
    #[arg(long)]
    json: bool,
}

pub(super) fn check(args: &CheckArgs) -> Result<(), Failure> {
    match config::load_at(&args.config, Some(unix_now())) {
        Ok(config) if args.json => {
            print(&format!("{}\n", json!({ "errors": [], "config": config })));
            Ok(())
        }
        Ok(config) => {
            print(&config.describe());
            Ok(())
        }
        Err(errors) => {
            if args.json {
                print(&format!("{}\n", json!({ "errors": errors })));
            } else {
                for error in &errors {
                    eprintln!("{error}");
                }
            }
            let plural = if errors.len() == 1 { "" } else { "s" };
            Err(Failure::Failed(format!("{}: {} error{plural}", args.config.display(), errors.len())))
        }
    }
}
