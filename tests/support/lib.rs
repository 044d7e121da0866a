//! Helpers that system tests share: the real binary, a real S3 server, real devices. They use public interfaces only.

pub mod binary;
pub mod cluster;
pub mod device;
pub mod embedded;
pub mod loopback;
pub mod network;
pub mod postgres;
pub mod process;
pub mod seaweed;
pub mod service;
pub mod troublemaker;
pub mod versity;

use std::io::Write;

/// Notes a test that can't run here, and why. `cargo xtask test` lists these at the end.
pub fn skip(test: &str, why: &str) {
    let line = format!("  {test}: {why}\n");
    if let Some(path) = std::env::var_os("MILKRUN_TEST_SKIPPED")
        && let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(path)
    {
        // If the line were lost, the skip would not be noticed.
        assert!(file.write_all(line.as_bytes()).is_ok(), "can't note a skip");
    }
    let _ = std::io::stderr().write_all(format!("SKIPPED{line}").as_bytes());
}

/// Whether we are root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Pseudo-random bytes, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}
