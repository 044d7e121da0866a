//! One stored sample per object of format 2. Each must parse for ever, and what is parsed must encode to the same bytes.
//!
//! `cargo xtask bless` writes samples that are missing. One that is there is never rewritten: a changed format is a new
//! version with a sample of its own (see CONTRIBUTING.md, "Stored bytes").
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod samples;

use milkrun_repository::clock::Moment;
use milkrun_repository::config::Config;
use milkrun_repository::damaged;
use milkrun_repository::id::RunId;
use milkrun_repository::index::Segment;
use milkrun_repository::keys::envelope::{self, Kind};
use milkrun_repository::keys::{Domain, wrapped};
use milkrun_repository::pack::{Directory, PackKind, SlotOpener, slot_key};
use milkrun_repository::point::ended;
use milkrun_repository::point::journal;
use milkrun_repository::point::lease::Lease;
use milkrun_repository::point::{Placement, Root, RootBody};
use milkrun_repository::store::Key;
use milkrun_repository::volume_map::{Leaf, Node, PageList};
use samples::*;

/// The stored sample, or a new one if blessing.
fn golden(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if !path.exists() && std::env::var_os("MILKRUN_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, make()).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}; `cargo xtask bless` makes missing samples"))
}

#[test]
fn configuration() {
    let bytes = golden("repository-v2.json", || config().encode(&ring()));
    let parsed = Config::decode(&bytes).unwrap();
    assert_eq!(parsed, config());
    assert_eq!(parsed.encode(&ring()), bytes);
}

#[test]
fn key() {
    let config = golden("repository-v2.json", || config().encode(&ring()));
    let bytes = golden("key-v2.json", || wrapped::wrap(&secret(), PASSWORD, &config, wrapped::Cost::TEST).1);
    let file = wrapped::Authentic::decode(&bytes, &ring().public().signing).unwrap();
    let opened = file.unwrap(PASSWORD, &config).unwrap();
    assert_eq!(milkrun_repository::keys::KeyRing::from_secret(&opened).public(), ring().public());
}

#[test]
fn domain_keys() {
    let bytes = golden("domain-v2.bin", || domain().1);
    assert_eq!(domain().1, bytes);
    let opened = Domain::open(&bytes, &Key::domain(&domain_id()), &repository(), &ring()).unwrap();
    for kind in [PackKind::Data, PackKind::Metadata] {
        assert_eq!(opened.recipient(kind), domain().0.recipient(kind));
    }
}

#[test]
fn pack_and_its_slots() {
    let bytes = golden("pack-v2.bin", || pack().bytes);
    let key = Directory::footer(&bytes).unwrap();
    let id = milkrun_repository::id::PackId::try_from(&bytes[40..56]).unwrap();
    let (domain, _) = domain();
    let head = Directory::check_header(&bytes, &repository(), &id).unwrap();
    assert_eq!((head.kind, head.recipient), (PackKind::Data, domain.recipient(PackKind::Data).tag()));
    let pack_key = key.open(domain.secret(PackKind::Data), &repository(), &id, PackKind::Data).unwrap();
    let directory = Directory::open(&bytes, bytes.len() as u64, &repository(), &id, &pack_key, &key).unwrap();
    let mut opener = SlotOpener::new(repository()).unwrap();
    assert_eq!(directory.slots.len(), chunks().len());
    for ((chunk, place), plain) in directory.slots.iter().zip(chunks()) {
        assert_eq!(*chunk, domain.chunks().identify(&plain));
        let mut sealed = bytes[place.offset as usize..place.end() as usize].to_vec();
        let mut out = vec![0; plain.len()];
        let key = slot_key(&pack_key, place.slot);
        opener.open(chunk, place, &key, &mut sealed, &mut out, |b| domain.chunks().identify(b)).unwrap();
        assert_eq!(out, plain);
    }
}

#[test]
fn root_and_tombstone() {
    let (domain, _) = domain();
    let recipient = domain.recipient(PackKind::Metadata);
    let bytes = golden("point-v2.bin", || root().encode(&body(), &ring(), &recipient).unwrap());
    let parsed = Root::decode(&bytes, &root().key(), &repository(), &ring().public().signing).unwrap();
    assert_eq!(parsed, root());
    assert_eq!(Root::open(&bytes, domain.secret(PackKind::Metadata)).unwrap(), body());
    let plain = golden("point-body-v2.bin", || body().encode());
    assert_eq!(RootBody::decode(&plain).unwrap(), body());
    assert_eq!(body().encode(), plain);
    let tombstone = golden("tombstone-v2.bin", || root().encode_tombstone(&ring(), &recipient).unwrap());
    let parsed = Root::decode(&tombstone, &root().key(), &repository(), &ring().public().signing).unwrap();
    assert!(parsed.tombstone);
}

#[test]
fn placement_sample() {
    let bytes = golden("placement-v1.bin", || placement().encode(&ring()));
    let key = Key::placement(&root().id(), 0);
    let signer = ring().public().signing;
    let parsed = Placement::decode(&bytes, &key, &root().id(), &[7; 32], &repository(), &signer).unwrap();
    assert_eq!(parsed, placement());
    assert_eq!(parsed.encode(&ring()), bytes);
}

#[test]
fn index_segment_sample() {
    let body = golden("segment-body-v1.bin", || segment().encode());
    assert_eq!(Segment::decode(&body).unwrap(), segment());
    assert_eq!(segment().encode(), body);
    let key = Key::new("index/golden/segment");
    let object = golden("segment-v1.bin", || envelope::seal(&ring(), &repository(), &key, Kind::IndexSegment, &body));
    assert_eq!(envelope::open(&ring(), &repository(), &key, Kind::IndexSegment, &object).unwrap(), body);
}

#[test]
fn lease_sample() {
    let body = golden("lease-body-v2.bin", || lease().encode());
    assert_eq!(Lease::decode(&body).unwrap(), lease());
    assert_eq!(lease().encode(), body);
}

#[test]
fn damaged_packs_sample() {
    let body = golden("damaged-body-v1.bin", || damaged::encode(&damaged_packs()));
    assert_eq!(damaged::decode(&body).unwrap(), damaged_packs());
    assert_eq!(damaged::encode(&damaged_packs()), body);
}

#[test]
fn ended_sample() {
    let (run, moment) = (RunId::from_bytes([7; 8]), Moment::from_millis(1_800_000_000_000));
    let body = golden("ended-body-v2.bin", || ended::encode(&run, moment, ended::Outcome::Failed));
    assert_eq!(ended::decode(&body).unwrap(), (run, moment, ended::Outcome::Failed));
    assert_eq!(ended::encode(&run, moment, ended::Outcome::Failed), body);
}

#[test]
fn journal_sample() {
    let body = golden("journal-body-v2.bin", || journal::encode(&journal()));
    assert_eq!(journal::decode(&body).unwrap(), journal());
    assert_eq!(journal::encode(&journal()), body);
    let body = golden("journal-notes-body-v2.bin", || journal::encode(&journal_notes()));
    assert_eq!(journal::decode(&body).unwrap(), journal_notes());
    assert_eq!(journal::encode(&journal_notes()), body);
    let body = golden("restore-journal-body-v2.bin", || journal::encode(&restore_journal()));
    assert_eq!(journal::decode(&body).unwrap(), restore_journal());
    assert_eq!(journal::encode(&restore_journal()), body);
}

#[test]
fn volume_map_sample() {
    let bytes = golden("leaf-v3.bin", || leaf_with_pages().encode());
    assert_eq!(Leaf::decode(&bytes).unwrap(), leaf_with_pages());
    assert_eq!(leaf_with_pages().encode(), bytes);
    let bytes = golden("node-v1.bin", || node().encode());
    assert_eq!(Node::decode(&bytes).unwrap(), node());
    assert_eq!(node().encode(), bytes);
    let bytes = golden("page-list-v1.bin", || page_list().encode());
    assert_eq!(PageList::decode(&bytes).unwrap(), page_list());
    assert_eq!(page_list().encode(), bytes);
}
