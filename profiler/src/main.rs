//! Parses the command line, runs the command, prints the error, sets the exit code: 0 written,
//! 1 failed, 2 usage, or that of the profiled command.

use std::process::ExitCode;

use clap::Parser as _;
use pyebpf::{
    cli::{Cli, Command},
    commands,
    target::Ambiguous,
};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Record(args) => match args.check() {
            Ok(config) => commands::record::run(config),
            Err(error) => {
                eprintln!("pyebpf: {error:#}");
                return ExitCode::from(2);
            }
        },
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Completions { shell } => {
            commands::completions::run(shell).map(|()| ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("pyebpf: {error:#}");
        match error.is::<Ambiguous>() {
            true => ExitCode::from(2),
            false => ExitCode::FAILURE,
        }
    })
}
