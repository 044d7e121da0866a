//! A fuzz target for every decoder: of stored objects, of text that people type, and of their manifests.
//!
//! No decoder may panic or allocate absurd amounts of memory. What it accepts must encode to the same bytes again, so
//! that no two byte strings mean the same object. Decoders of signed and sealed objects must accept only the original.
//!
//! `cargo xtask fuzz` runs them under libFuzzer; `tests/mutations.rs` runs them on damaged samples in every test run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "samples are sound; a fuzz target fails by panic"
)]

mod file_system;
#[path = "../../repository/tests/samples/mod.rs"]
mod samples;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use milkrun_agent::device::changes::Changes;
use milkrun_coordinator::manifests;
use milkrun_repository::chunk::codec::{Codec, Decompressor};
use milkrun_repository::config::Config;
use milkrun_repository::damaged;
use milkrun_repository::id::{PackId, PointId, SegmentId};
use milkrun_repository::index::{MappedSegment, Segment};
use milkrun_repository::keys::domain::{Domain, PublicDomain};
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::keys::wrapped;
use milkrun_repository::pack::{Directory, PackKind};
use milkrun_repository::point::ended;
use milkrun_repository::point::journal;
use milkrun_repository::point::lease::Lease;
use milkrun_repository::point::{Placement, Root, RootBody, Selector};
use milkrun_repository::store::{Key, StoreUrl};
use milkrun_repository::volume_map::{Leaf, Node, PageList};

/// The golden samples. They are the same bytes in each process, so that a corpus stays useful.
macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!("../../repository/tests/golden/", $name)).as_slice()
    };
}

/// Feeds bytes to a decoder and checks the result.
pub type Check = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// A fuzz target for one decoder.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Valid inputs to start from.
    pub seeds: Vec<Vec<u8>>,
    /// Panics if the decoder misbehaves.
    pub check: Check,
}

impl Target {
    fn new(name: &'static str, seeds: Vec<Vec<u8>>, check: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        Self { name, seeds, check: Arc::new(check) }
    }

    /// With one sample. Input that is accepted must encode to itself.
    fn canonical(name: &'static str, seed: Vec<u8>, again: fn(&[u8]) -> Option<Vec<u8>>) -> Self {
        assert!(again(&seed).is_some(), "{name}: the sample itself is refused");
        Self::new(name, vec![seed], move |b| {
            if let Some(encoded) = again(b) {
                assert_eq!(encoded, b, "another encoding of the same object");
            }
        })
    }

    /// With a signed object: nothing else may be accepted.
    fn only(name: &'static str, seed: &'static [u8], accepts: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Self {
        assert!(accepts(seed), "{name}: the sample itself is refused");
        Self::new(name, vec![seed.to_vec()], move |b| {
            if accepts(b) {
                assert_eq!(b, seed, "an altered object was accepted");
            }
        })
    }
}

/// All fuzz targets.
pub fn targets() -> Vec<Target> {
    [stored(), signed(), sealed(), from_people(), on_volumes()].into_iter().flatten().collect()
}

/// Decoders of opened chunks and envelopes.
fn stored() -> Vec<Target> {
    vec![
        Target::canonical("leaf", golden!("leaf-v3.bin").to_vec(), |b| match Leaf::decode(b) {
            // A leaf of an earlier version is encoded in the current one, and must mean the same.
            Ok(leaf) if b[4] < 3 => {
                assert_eq!(Leaf::decode(&leaf.encode()).expect("what was encoded decodes"), leaf);
                None
            }
            leaf => leaf.ok().map(|x| x.encode()),
        }),
        Target::canonical("page list", golden!("page-list-v1.bin").to_vec(), |b| {
            PageList::decode(b).ok().map(|x| x.encode())
        }),
        Target::canonical("node", golden!("node-v1.bin").to_vec(), |b| Node::decode(b).ok().map(|x| x.encode())),
        Target::canonical("segment", golden!("segment-body-v1.bin").to_vec(), |b| {
            let segment = Segment::decode(b).ok()?;
            assert!(
                MappedSegment::cache_file(b, &[1; 32], &SegmentId::from_bytes([1; 16])).is_ok(),
                "decoded and can't be mapped"
            );
            Some(segment.encode())
        }),
        Target::canonical("damaged packs", golden!("damaged-body-v1.bin").to_vec(), |b| {
            damaged::decode(b).ok().map(|packs| damaged::encode(&packs))
        }),
        Target::canonical("lease", golden!("lease-body-v2.bin").to_vec(), |b| {
            Lease::decode(b).ok().map(|x| x.encode())
        }),
        Target::canonical("journal of a restore", golden!("restore-journal-body-v2.bin").to_vec(), |b| {
            journal::decode(b).ok().map(|x| journal::encode(&x))
        }),
        Target::canonical("ended run", golden!("ended-body-v2.bin").to_vec(), |b| {
            ended::decode(b).ok().map(|(run, moment, outcome)| ended::encode(&run, moment, outcome))
        }),
        Target::canonical("notes of a journal", golden!("journal-notes-body-v2.bin").to_vec(), |b| {
            journal::decode(b).ok().map(|x| journal::encode(&x))
        }),
        Target::canonical("journal", golden!("journal-body-v2.bin").to_vec(), |b| {
            journal::decode(b).ok().map(|x| journal::encode(&x))
        }),
        Target::canonical("root-body", golden!("point-body-v2.bin").to_vec(), |b| {
            RootBody::decode(b).ok().map(|x| x.encode())
        }),
        Target::new("manifests", vec![manifests_seed()], |b| {
            // The decoder accepts objects in any order, and the encoder sorts them: encoding again must change nothing.
            let Ok(mut objects) = manifests::decode(b) else { return };
            let once = manifests::encode(&mut objects);
            let mut again = manifests::decode(&once).expect("what was encoded decodes");
            assert_eq!(manifests::encode(&mut again), once);
        }),
        Target::new("chunk", vec![zstd::bulk::compress(&b"one fish two fish ".repeat(100), 3).unwrap()], |b| {
            let mut out = vec![0; 64 << 10];
            let _ = Decompressor::new().unwrap().decompress(Codec::Zstd, b, &mut out);
        }),
    ]
}

fn manifests_seed() -> Vec<u8> {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\ndata: {k: v}\n";
    let mut objects = manifests::load(&[(PathBuf::from("a.yaml"), text)]).expect("sound");
    manifests::encode(&mut objects)
}

/// Decoders of objects that need only the public key.
fn signed() -> Vec<Target> {
    let signer = samples::ring().public().signing;
    vec![
        Target::only("root", golden!("point-v2.bin"), move |b| {
            let _ = Root::parse(b);
            let _ = Root::open(b, samples::domain().0.secret(PackKind::Metadata));
            Root::decode(b, &samples::root().key(), &samples::repository(), &signer).is_ok()
        }),
        Target::only("placement", golden!("placement-v1.bin"), move |b| {
            let _ = Placement::parse(b);
            let point = samples::root().id();
            Placement::decode(b, &Key::placement(&point, 0), &point, &[7; 32], &samples::repository(), &signer).is_ok()
        }),
        Target::only("configuration", golden!("repository-v2.json"), |b| Config::decode(b).is_ok()),
    ]
}

/// Decoders of objects that need a secret key.
fn sealed() -> Vec<Target> {
    let pack = golden!("pack-v2.bin");
    let id = PackId::try_from(&pack[40..56]).unwrap();
    let sealed_key = Directory::footer(pack).unwrap();
    let pack_key = sealed_key
        .open(samples::domain().0.secret(PackKind::Data), &samples::repository(), &id, PackKind::Data)
        .unwrap();
    let index_key = Key::new("index/golden/segment");
    vec![
        Target::new("pack", vec![pack.to_vec()], move |b| {
            let _ = Directory::check_header(b, &samples::repository(), &id);
            if let Ok(key) = Directory::footer(b) {
                let _ = Directory::open(b, b.len() as u64, &samples::repository(), &id, &pack_key, &key);
            }
        }),
        Target::only("envelope", golden!("segment-v1.bin"), move |b| {
            envelope::open(&samples::ring(), &samples::repository(), &index_key, Kind::IndexSegment, b).is_ok()
        }),
        Target::only("keys of a domain", golden!("domain-v2.bin"), |b| {
            let key = Key::domain(&samples::domain_id());
            let _ = PublicDomain::parse(b);
            Domain::open(b, &key, &samples::repository(), &samples::ring()).is_ok()
        }),
        Target::only("wrapped-key", golden!("key-v2.json"), |b| {
            // Higher costs than the sample's would only take time.
            !is_costly(b)
                && wrapped::Authentic::decode(b, &samples::ring().public().signing)
                    .is_ok_and(|file| file.unwrap(samples::PASSWORD, golden!("repository-v2.json")).is_ok())
        }),
    ]
}

/// Whether a wrapped key has Argon2 costs that are too high for fuzzing.
fn is_costly(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let above = |name: &str, most: u64| {
        let after = text.split_once(name).map_or("", |(_, rest)| rest);
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        !digits.is_empty() && digits.parse::<u64>().map_or(true, |n| n > most)
    };
    above("\"memory_kib\":", 64) || above("\"passes\":", 2)
}

/// Decoders of text from people: manifests, lists, names.
fn from_people() -> Vec<Target> {
    let yaml = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: x}}\n---\n# none\n";
    let json = r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"},"data":{"k":"dg=="}}"#;
    vec![
        Target::new("yaml", vec![yaml.into(), json.into()], |b| {
            let _ = manifests::load(&[(PathBuf::from("a.yaml"), b)]);
            if let Ok(objects) = manifests::load(&[(PathBuf::from("a.json"), b)]) {
                let mut objects = objects;
                let lines = manifests::encode(&mut objects);
                assert_eq!(manifests::decode(&lines), Ok(objects), "what is stored reads as it was");
            }
        }),
        Target::new(
            "list of changes",
            vec![
                b"# made by hand\nsince rp-20261122t143000z-0707070707070707\n0 8192\n\n1048576 1\n4096 12288\nend\n"
                    .into(),
            ],
            |b| {
                let Ok(list) = Changes::parse(b, Path::new("list")) else { return };
                let mut end = 0;
                for range in list.within(0..u64::MAX) {
                    assert!(range.start >= end && range.end > range.start, "ranges in order, and apart");
                    assert!(list.names(range.start) && list.names(range.end - 1));
                    end = range.end;
                }
            },
        ),
        Target::new(
            "names",
            ["rp-20261122t143000z-0707070707070707", "shop@2026-11-22T14:30:00Z", "s3://bucket/prefix", "file:///a"]
                .map(Vec::from)
                .into(),
            |b| {
                let text = String::from_utf8_lossy(b);
                let _ = text.parse::<Selector>();
                let _ = text.parse::<StoreUrl>();
                if let Ok(id) = text.parse::<PointId>() {
                    assert_eq!(id.to_string(), text);
                }
                let _ = Key::new(text.clone()).parse_point();
            },
        ),
    ]
}

/// Decoders of data on volumes.
fn on_volumes() -> Vec<Target> {
    let seeds = file_system::seeds();
    assert!(
        seeds.iter().all(|s| file_system::free_bytes(s).is_some_and(|n| n > 8 << 20)),
        "the samples are not accepted"
    );
    vec![Target::new("free space of ext4", seeds, |b| {
        file_system::free_bytes(b);
    })]
}
