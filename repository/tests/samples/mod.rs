//! One fixed value of every stored object.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses some of them")]

use std::collections::BTreeSet;
use std::time::Duration;

use milkrun_repository::chunk::codec::{Codec, Compressor, Level};
use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::stream_cutter::StreamCutter;
use milkrun_repository::clock::Moment;
use milkrun_repository::config::{Config, LockMode, LockPolicy};
use milkrun_repository::id::{AppId, ChunkId, DomainId, PackId, RepositoryId, RunId, SegmentId};
use milkrun_repository::index::{PackInfo, Segment};
use milkrun_repository::keys::{Domain, KeyRing, Secret};
use milkrun_repository::pack::{PackBuilder, PackKind, PackTarget, Place, SealedKey, SealedPack};
use milkrun_repository::point::journal::{self, Record};
use milkrun_repository::point::lease::Lease;
use milkrun_repository::point::root::{
    Class, FileSystem, Layout, ManifestEntry, MapId, Skipped, VolumeEntry, VolumeKind,
};
use milkrun_repository::point::{Placement, Root, RootBody};
use milkrun_repository::store::Version;
use milkrun_repository::volume_map::{Child, Extent, Leaf, MapRef, Node, PageList, PagesAt};

pub const PASSWORD: &[u8] = b"golden";

pub fn secret() -> Secret {
    Secret::from_bytes([1; 32])
}

pub fn ring() -> KeyRing {
    KeyRing::from_secret(&secret())
}

pub fn repository() -> RepositoryId {
    RepositoryId::from_bytes([2; 16])
}

pub fn application() -> AppId {
    AppId { cluster: "west".parse().unwrap(), namespace: Some("prod".parse().unwrap()), name: "shop".parse().unwrap() }
}

pub fn domain_id() -> DomainId {
    DomainId { app: ring().app_hash(&application()), number: 1 }
}

/// Its keys, and the object that holds them.
pub fn domain() -> (Domain, Vec<u8>) {
    Domain::sample(domain_id(), &repository(), &ring())
}

pub fn config() -> Config {
    Config {
        id: repository(),
        created: Moment::from_millis(1_763_821_800_123),
        pages: PageCutter { min_pages: 8, avg_pages: 32, max_pages: 128, hole_pages: 8 },
        streams: StreamCutter::DEFAULT,
        lock: LockPolicy { mode: LockMode::Compliance, period: Duration::from_secs(30 * 86400) },
        keys: ring().public(),
    }
}

pub fn chunks() -> Vec<Vec<u8>> {
    vec![b"hello".to_vec(), b"one fish two fish ".repeat(1000), (0..=255).collect()]
}

pub fn pack() -> SealedPack {
    let domain = domain().0;
    let recipient = domain.recipient(PackKind::Data);
    let target = PackTarget { repository: repository(), kind: PackKind::Data, recipient };
    let mut builder = PackBuilder::new(target, vec![0; 1 << 20]);
    let mut compressor = Compressor::new(Level::DEFAULT).unwrap();
    for chunk in chunks() {
        builder.append(&domain.chunks().identify(&chunk), &chunk, &mut compressor);
    }
    builder.finish().unwrap()
}

pub fn root() -> Root {
    Root {
        tombstone: false,
        repository: repository(),
        app: domain_id().app,
        domain: domain_id().number,
        class: Class::Monthly,
        run: RunId::from_bytes([3; 8]),
        moment: Moment::from_millis(1_763_821_800_123),
        lock_until: Some(Moment::from_millis(1_766_413_800_000)),
    }
}

fn map_id(seed: u8) -> MapId {
    MapId { len: 123_456_789, level: 1, chunk: Some(ChunkId::from_bytes([seed; 32])) }
}

pub fn body() -> RootBody {
    RootBody {
        application: application(),
        namespace_uid: "8a3e0d5c-0b7f-4c53-9a42-1d2c3b4a5f60".into(),
        host: "node-1".into(),
        writer: "milkrun 0.2.0".into(),
        parent: Some(root().id()),
        duration_ms: 4711,
        stored_bytes: 1_000_000,
        lock_ms: 2_592_000_000,
        volumes: vec![
            VolumeEntry {
                name: "data".parse().unwrap(),
                kind: VolumeKind::Image,
                sector_bytes: 4096,
                map: map_id(8),
                hole_bytes: 5,
                new_bytes: 6,
                stored_bytes: 7,
                notes: vec!["a note".into()],
                layout: Layout { by_lists: 3, sampled_bytes: 1 << 20, ranges: 77, opened_bytes: 5 << 30 },
                moment: Moment::from_millis(1_763_821_799_000),
                file_system: FileSystem { kind: "ext4".into(), label: "shop-data".into() },
                claim: r#"{"storageClass":"fast"}"#.into(),
            },
            VolumeEntry {
                name: "dump".parse().unwrap(),
                kind: VolumeKind::Stream,
                sector_bytes: 0,
                map: MapId { len: 0, level: 0, chunk: None },
                hole_bytes: 0,
                new_bytes: 0,
                stored_bytes: 0,
                notes: Vec::new(),
                layout: Layout::default(),
                moment: root().moment,
                file_system: FileSystem::default(),
                claim: String::new(),
            },
        ],
        skipped: vec![Skipped { name: "cache".parse().unwrap(), reason: "left out by the policy".into() }],
        manifests: Some(ManifestEntry { objects: 3, map: map_id(9) }),
    }
}

pub fn place(seed: u8) -> Place {
    Place {
        pack: PackId::from_bytes([seed; 16]),
        slot: 5,
        offset: 64,
        sealed_len: 1000,
        plain_len: 4096,
        codec: Codec::Zstd,
    }
}

pub fn info(seed: u8) -> PackInfo {
    PackInfo {
        id: PackId::from_bytes([seed; 16]),
        kind: if seed.is_multiple_of(2) { PackKind::Data } else { PackKind::Metadata },
        length: 32 << 20,
        digest: [seed; 32],
        version: Version("3sL4kqtJlcpXroDTDmJ".into()),
        key: SealedKey { encapsulated: [seed; 32], ciphertext: [seed; 48], slots: 7, directory_len: 324 },
        locked_until: seed.is_multiple_of(2).then(|| Moment::from_millis(1_766_413_800_000)),
    }
}

pub fn placement() -> Placement {
    Placement {
        repository: repository(),
        root: [7; 32],
        number: 0,
        made: Moment::from_millis(1_763_821_801_000),
        maps: vec![Some(place(4)), None, Some(place(5))],
        packs: vec![info(4), info(5)],
    }
}

pub fn segment() -> Segment {
    let entry = |id: u8, pack: u8| (ChunkId::from_bytes([id; 32]), place(pack));
    let mut segment = Segment::new(vec![info(4), info(6)], vec![entry(9, 4), entry(1, 6), entry(5, 4)]);
    segment.replaces = vec![SegmentId::from_bytes([8; 16])];
    segment
}

pub fn damaged_packs() -> BTreeSet<PackId> {
    [3, 1, 2].map(|n| PackId::from_bytes([n; 16])).into()
}

pub fn lease() -> Lease {
    Lease::of(&root(), 1, "node-1")
}

pub fn journal() -> Vec<Record> {
    let source = journal::Source {
        name: "data".parse().unwrap(),
        stream: false,
        size: 1 << 30,
        moment: Some(Moment::from_millis(1_763_821_799_000)),
        claim: r#"{"storageClass":"fast"}"#.into(),
        reach: vec![("node-a".into(), "/dev/vg/data".into()), ("node-b".into(), "/dev/data".into())],
    };
    let chunk = Some((ChunkId::from_bytes([1; 32]), 96, 4096));
    let runs = vec![journal::Run { len: 4000, chunk }, journal::Run { len: 65536, chunk: None }];
    let region = |offset, unchanged, runs| journal::Region { offset, len: 16 << 20, unchanged, runs };
    vec![
        Record::TakeOver { epoch: 6, number: 2 },
        Record::Begin(journal::Begin {
            application: application(),
            namespace_uid: body().namespace_uid,
            domain: domain_id().number,
            class: Class::Monthly,
            lock_ms: 86_400_000,
            parent: Some(root().id()),
            level: -3,
            adapt_level: true,
            whole_chunks: false,
            allow_mounted: true,
            allow_changing: false,
            allow_empty: true,
            open: true,
            ordered_by: "user ann".into(),
            host: "node-1".into(),
            sources: vec![source],
            skipped: body().skipped,
            manifest_objects: 1,
            manifests: b"{}\n".to_vec(),
        }),
        Record::Sealed { pack: info(4), entries: vec![(ChunkId::from_bytes([1; 32]), place(4))] },
        Record::Regions {
            volume: "data".parse().unwrap(),
            regions: vec![region(0, false, runs), region(16 << 20, true, Vec::new())],
        },
        Record::Finished(journal::Finished {
            volume: "data".parse().unwrap(),
            len: 32 << 20,
            sector_bytes: 4096,
            read_bytes: 5,
            new_bytes: 6,
            stored_bytes: 7,
            notes: vec!["a note".into()],
            file_system: body().volumes[0].file_system.clone(),
        }),
        Record::Ended,
    ]
}

pub fn journal_notes() -> Vec<Record> {
    let volume = || "data".parse().unwrap();
    vec![
        Record::ByList { volume: volume() },
        Record::Source(journal::Source {
            name: "wal".parse().unwrap(),
            stream: true,
            size: 0,
            moment: None,
            claim: String::new(),
            reach: vec![("node-a".into(), "/dev/vg/wal".into())],
        }),
        Record::Complete(journal::Complete {
            skipped: body().skipped,
            manifest_objects: 1,
            manifests: b"{}\n".to_vec(),
        }),
        Record::LeavesOut { volume: volume() },
        Record::Granted { node: "node-a".into(), volume: volume(), bytes: 32 << 20 },
    ]
}

pub fn restore_journal() -> Vec<Record> {
    let target = |volume: &str, stream| journal::restore::Target {
        volume: volume.parse().unwrap(),
        node: "node-a".into(),
        path: format!("/dev/vg/{volume}"),
        stream,
    };
    let work = journal::restore::Work { written_bytes: 1 << 30, hole_bytes: 4096, fetched_bytes: 5, requests: 6 };
    vec![
        Record::Restore(journal::restore::Restore {
            application: application(),
            point: root().id(),
            ordered_by: "user ann".into(),
            force: false,
            discard_rest: true,
            by_operator: true,
            targets: vec![target("data", false), target("dump", true)],
        }),
        Record::Reached {
            moment: root().moment,
            volume: "data".parse().unwrap(),
            offset: (1 << 30) + 4096,
            tag: "in place".into(),
            work,
        },
        Record::Restored { volume: "data".parse().unwrap(), work },
    ]
}

pub fn leaf() -> Leaf {
    let data = |id: u8, pack: u8| Extent::Data {
        len: 4000,
        chunk_offset: 96,
        id: ChunkId::from_bytes([id; 32]),
        place: place(pack),
        pages: None,
    };
    [data(1, 4), Extent::Hole { len: 65536 }, data(2, 6), data(1, 4)].into_iter().collect()
}

/// With digests of pages kept for some of it.
pub fn leaf_with_pages() -> Leaf {
    let lists = [Some((7, 1)), None, Some((7, 40)), None].into_iter();
    let with = |(mut extent, list): (Extent, Option<(u8, u32)>)| {
        if let (Extent::Data { pages, .. }, Some((list, first))) = (&mut extent, list) {
            let list = MapRef { id: ChunkId::from_bytes([list; 32]), place: place(list) };
            *pages = Some(PagesAt { list, first });
        }
        extent
    };
    leaf().extents().zip(lists).map(with).collect()
}

pub fn page_list() -> PageList {
    PageList { digests: vec![[1; 8], [0xff; 8], *b"\x00\x01\x02\x03\x04\x05\x06\x07"] }
}

pub fn node() -> Node {
    let chunk = MapRef { id: ChunkId::from_bytes([3; 32]), place: place(5) };
    let children = vec![
        Child { len: 16 << 20, chunk: Some(chunk) },
        Child { len: 10 << 40, chunk: None },
        Child { len: 5, chunk: Some(chunk) },
    ];
    Node { level: 2, children }
}
