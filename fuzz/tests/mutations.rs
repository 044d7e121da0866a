//! Runs every decoder on damaged samples. This is deterministic, so that a failure repeats. `MILKRUN_FUZZ_ROUNDS` sets
//! the number of rounds.
#![allow(clippy::unwrap_used, reason = "tests")]

use milkrun_fuzz::targets;

struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 as usize) % below.max(1)
    }

    /// Damages a sample: flips bits, overwrites, cuts off, repeats, or inserts extreme numbers.
    fn damage(&mut self, sample: &[u8]) -> Vec<u8> {
        let mut out = sample.to_vec();
        for _ in 0..=self.next(4) {
            let at = self.next(out.len());
            match self.next(7) {
                0 if !out.is_empty() => out[at] ^= 1 << self.next(8),
                1 if !out.is_empty() => out[at] = self.next(256) as u8,
                2 => out.truncate(at),
                3 => out.insert(at, self.next(256) as u8),
                4 => {
                    let part = out[at..].to_vec();
                    out.extend_from_slice(&part);
                }
                5 if out.len() >= at + 4 => out[at..at + 4].fill(0xff),
                6 if out.len() >= at + 4 => out[at..at + 4].fill(0),
                _ => {}
            }
        }
        out
    }
}

#[test]
fn every_decoder_survives_damaged_samples() {
    let rounds = std::env::var("MILKRUN_FUZZ_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(20_000);
    for target in targets() {
        // Each round of this target derives a key, which is slow.
        let rounds = if target.name == "wrapped-key" { rounds / 100 } else { rounds };
        for seed in &target.seeds {
            (target.check)(seed);
            let mut random = Random(0x9e37_79b9_7f4a_7c15);
            for _ in 0..rounds / target.seeds.len() {
                (target.check)(&random.damage(seed));
            }
        }
    }
}
