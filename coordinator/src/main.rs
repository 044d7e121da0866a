//! `milkrun-coordinator`: the control plane of one or several repositories.

mod args;
mod cluster;
mod error;
mod led_repositories;
mod serve;

use clap::Parser;

fn main() -> std::process::ExitCode {
    milkrun_observe::start::begin();
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            let _ = e.print();
            return std::process::ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    serve::run(args)
}
