//! `milkrun`: backup and disaster recovery of stateful applications, from one command line.

mod args;
#[cfg(test)]
mod book;
mod commands;
mod driver;
mod embedded;
mod output;
mod place;
mod progress;
mod secret;
mod trial;
mod units;

use clap::Parser;

fn main() -> std::process::ExitCode {
    milkrun_observe::start::begin();
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            if e.use_stderr() {
                // If this can't be printed, the exit code still tells.
                let _ = e.print();
                return std::process::ExitCode::from(output::Exit::Usage as u8);
            }
            // Help and version.
            output::print(&e.render().to_string());
            return output::end(output::Exit::Done);
        }
    };
    commands::run(args)
}
