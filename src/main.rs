//! The program: arguments, one command, one error message, one exit status.

use std::process::ExitCode;

use clap::Parser;
use segment_rlhf::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
