//! The program `mobikex`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    mobikex::cli::main()
}
