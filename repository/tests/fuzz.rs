//! Every decoder against damaged samples: none panics, and what one accepts it encodes to the same bytes.
//!
//! Deterministic (a seed per run of the loop), so that a failure repeats. `MILKRUN_FUZZ_ROUNDS` sets how long.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod samples;

use milkrun_repository::config::Config;
use milkrun_repository::index::{MappedSegment, Segment};
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::keys::wrapped;
use milkrun_repository::pack::{Directory, PackKind};
use milkrun_repository::point::lease::Lease;
use milkrun_repository::point::{Placement, Root, RootBody, Selector};
use milkrun_repository::store::{Key, StoreUrl};
use milkrun_repository::volume_map::{Leaf, Node};
use samples::*;

struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 as usize) % below.max(1)
    }

    /// Flips, overwrites, cuts, doubles, or puts extreme numbers into a sample.
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

fn rounds() -> usize {
    std::env::var("MILKRUN_FUZZ_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(30_000)
}

fn fuzz(sample: &[u8], check: impl Fn(&[u8])) {
    check(sample);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..rounds() {
        check(&random.damage(sample));
    }
}

#[test]
fn leaf_decoder() {
    fuzz(&leaf().encode(), |b| {
        if let Ok(x) = Leaf::decode(b) {
            assert_eq!(x.encode(), b);
        }
    });
}

#[test]
fn node_decoder() {
    fuzz(&node().encode(), |b| {
        if let Ok(x) = Node::decode(b) {
            assert_eq!(x.encode(), b);
        }
    });
}

#[test]
fn segment_decoder_and_cache() {
    fuzz(&segment().encode(), |b| {
        if let Ok(x) = Segment::decode(b) {
            assert_eq!(x.encode(), b);
            assert!(MappedSegment::cache_file(b).is_ok());
        }
    });
}

#[test]
fn lease_decoder() {
    fuzz(&lease().encode(), |b| {
        if let Ok(x) = Lease::decode(b) {
            assert_eq!(x.encode(), b);
        }
    });
}

#[test]
fn root_decoders() {
    fuzz(&body().encode(), |b| {
        if let Ok(x) = RootBody::decode(b) {
            assert_eq!(x.encode(), b);
        }
    });
    let sample = root().encode(&body(), &ring(), &config().keys.metadata).unwrap();
    let (signer, ring) = (ring().public().signing, ring());
    fuzz(&sample, |b| {
        let _ = Root::parse(b);
        if Root::decode(b, &root().key(), &repository(), &signer).is_ok() {
            assert_eq!(b, sample, "an altered root was accepted");
        }
        let _ = Root::open(b, ring.metadata());
    });
}

#[test]
fn placement_decoder() {
    let sample = placement().encode(&ring());
    let signer = ring().public().signing;
    fuzz(&sample, |b| {
        let _ = Placement::parse(b);
        let key = Key::placement(&root().id(), 0);
        if Placement::decode(b, &key, &root().id(), &[7; 32], &repository(), &signer).is_ok() {
            assert_eq!(b, sample, "an altered placement was accepted");
        }
    });
}

#[test]
fn configuration_and_key_decoders() {
    let sample = config().encode(&ring());
    fuzz(&sample, |b| {
        if Config::decode(b).is_ok() {
            assert_eq!(b, sample, "an altered configuration was accepted");
        }
    });
    let (_, key) = wrapped::wrap(&secret(), PASSWORD, &sample, wrapped::Cost::TEST);
    let mut random = Random(7);
    for _ in 0..rounds() / 100 {
        let _ = wrapped::unwrap(&random.damage(&key), PASSWORD, &sample);
    }
}

#[test]
fn pack_and_envelope_decoders() {
    let pack = pack();
    let (ring, repository) = (ring(), repository());
    let pack_key = pack.key.open(ring.data(), &repository, &pack.id, PackKind::Data).unwrap();
    fuzz(&pack.bytes, |b| {
        let _ = Directory::check_header(b, &repository, &pack.id);
        if let Ok(key) = Directory::footer(b) {
            let _ = Directory::open(b, b.len() as u64, &repository, &pack.id, &pack_key, &key);
        }
    });
    let key = Key::new("index/a/b");
    let sample = envelope::seal(&ring, &repository, &key, Kind::IndexSegment, b"body");
    fuzz(&sample, |b| {
        if envelope::open(&ring, &repository, &key, Kind::IndexSegment, b).is_ok() {
            assert_eq!(b, sample);
        }
    });
}

#[test]
fn texts() {
    for sample in
        ["rp-20261122t143000z-0707070707070707", "shop@2026-11-22T14:30:00Z", "s3://bucket/prefix", "file:///a"]
    {
        fuzz(sample.as_bytes(), |b| {
            let text = String::from_utf8_lossy(b);
            let _ = text.parse::<Selector>();
            let _ = text.parse::<StoreUrl>();
            if let Ok(id) = text.parse::<milkrun_repository::id::PointId>() {
                assert_eq!(id.to_string(), text);
            }
            let _ = Key::new(text.clone()).parse_point();
        });
    }
}
