//! Parses the command line, runs the command, prints the error, sets the exit code: 0 written,
//! 1 failed, 2 usage, or that of the profiled command.

// They panic where they can't write: `talk::say` does not.
#![warn(clippy::print_stderr, clippy::print_stdout)]

use std::process::ExitCode;

use pyebpf::{
    cli::{Cli, Command},
    commands,
    talk::say,
    target::Ambiguous,
};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let cli = Cli::read(&arguments).unwrap_or_else(|error| error.exit());
    let result = match cli.command {
        Command::Record(args) => match args.check() {
            Ok(config) => commands::record::run(config),
            Err(error) => {
                say(format_args!("pyebpf: {error:#}"));
                return ExitCode::from(2);
            }
        },
        Command::Daemon(args) => match args.check() {
            Ok((settings, true)) => commands::daemon::print(&settings),
            Ok((settings, false)) => commands::daemon::run(settings),
            Err(error) => {
                say(format_args!("pyebpf: {error:#}"));
                return ExitCode::from(2);
            }
        },
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Completions { shell } => {
            commands::completions::run(shell).map(|()| ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        say(format_args!("pyebpf: {error:#}"));
        match error.is::<Ambiguous>() {
            true => ExitCode::from(2),
            false => ExitCode::FAILURE,
        }
    })
}
