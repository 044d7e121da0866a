//! `milkrun`: backup and disaster recovery of stateful applications, from one command line.

mod args;
mod commands;
mod driver;
mod embedded;
mod output;
mod place;
mod progress;
mod secret;
mod units;

use clap::Parser;

fn main() -> std::process::ExitCode {
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            // Help and version are no errors; everything else is wrong usage. A closed pipe changes nothing.
            let _ = e.print();
            return std::process::ExitCode::from(if e.use_stderr() { output::Exit::Usage as u8 } else { 0 });
        }
    };
    commands::run(args)
}
