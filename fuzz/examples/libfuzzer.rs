//! libFuzzer for one target, chosen by `MILKRUN_FUZZ_TARGET`. Without that variable, it writes each target's samples to
//! the folder `MILKRUN_FUZZ_SEEDS`, one folder per target, and prints the names.
#![no_main]
#![allow(clippy::expect_used, clippy::print_stdout, reason = "driven by `cargo xtask fuzz`")]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use milkrun_fuzz::{Target, targets};

static CHOSEN: OnceLock<Target> = OnceLock::new();

fn choose() {
    let Some(name) = std::env::var_os("MILKRUN_FUZZ_TARGET") else {
        let folder = PathBuf::from(std::env::var_os("MILKRUN_FUZZ_SEEDS").expect("a folder for the samples"));
        for target in targets() {
            let folder = folder.join(target.name);
            std::fs::create_dir_all(&folder).expect("a folder");
            for (n, seed) in target.seeds.iter().enumerate() {
                std::fs::write(folder.join(format!("sample-{n}")), seed).expect("a sample");
            }
            println!("{}", target.name);
        }
        std::process::exit(0);
    };
    let target = targets().into_iter().find(|t| t.name == name).expect("a target of that name");
    CHOSEN.get_or_init(|| target);
}

fuzz_target!(init: choose(), |data: &[u8]| {
    (CHOSEN.get().expect("chosen").check)(data);
});
