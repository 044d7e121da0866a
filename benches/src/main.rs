//! `stages`: the speed of each stage of the data path on one thread, over data that fits into no cache.
//!
//! ```text
//! cargo run --release -p milkrun-benches              all stages
//! cargo run --release -p milkrun-benches -- zstd      those whose name contains "zstd"
//! ```
//! Each figure is the median of three passes over 1 GiB. The script `peers` compares the whole program with its peers.

mod data;

use std::error::Error;
use std::fmt::Display;
use std::hint::black_box;
use std::io::Write;
use std::time::{Duration, Instant};

use data::{Entropy, fill, noise};
use milkrun_repository::chunk::PAGE;
use milkrun_repository::chunk::codec::{Codec, Compressor, Level};
use milkrun_repository::chunk::is_zero;
use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::stream_cutter::StreamCutter;
use milkrun_repository::config::REGION_BYTES;
use milkrun_repository::id::{AppId, ChunkId, DomainId, PackId, RepositoryId, SegmentId};
use milkrun_repository::index::{IndexCache, PackInfo, Segment};
use milkrun_repository::keys::{Domain, KeyRing, Secret};
use milkrun_repository::pack::{
    PackBuilder, PackKind, PackTarget, Place, SealedKey, SealedPack, SlotKey, SlotOpener, slot_key,
};
use milkrun_repository::store::Version;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const TOTAL: usize = 1 << 30;
/// The average chunk.
const CHUNK: usize = 256 << 10;
const PACK_BYTES: usize = 32 << 20;
const PASSES: usize = 3;
const ENTRIES: usize = 1_000_000;

fn main() -> Outcome {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let bench = Bench { filter };
    line("stage", "data", "rate", "")?;
    // One buffer for all stages: the kernel has allocated its pages before the first pass.
    let mut bytes = vec![0; TOTAL];
    for entropy in [Entropy::Zero, Entropy::Random, Entropy::Half] {
        fill(&mut bytes, entropy);
        match entropy {
            Entropy::Zero => zeros(&bench, &bytes)?,
            Entropy::Random | Entropy::Half => {
                reading(&bench, entropy, &bytes)?;
                compressing(&bench, entropy, &bytes)?;
                packing(&bench, entropy, &bytes)?;
            }
        }
    }
    drop(bytes);
    index(&bench)
}

/// Prints a line of the table.
fn line(stage: &str, data: impl Display, rate: &str, note: &str) -> Outcome {
    let line = format!("{stage:<28} {data:<12} {rate:>12}  {note}");
    Ok(writeln!(std::io::stdout().lock(), "{}", line.trim_end())?)
}

/// The stages that were asked for.
struct Bench {
    filter: String,
}

impl Bench {
    fn wants(&self, stage: &str) -> bool {
        stage.contains(&self.filter)
    }

    /// Measures the bytes per second of `pass`, which processes [`TOTAL`] bytes and returns a note.
    fn stage(&self, stage: &str, entropy: Entropy, mut pass: impl FnMut() -> String) -> Outcome {
        if self.wants(stage) {
            let (time, note) = median(&mut pass);
            let rate = format!("{:.2} GB/s", per_second(TOTAL, time) / 1e9);
            line(stage, entropy, &rate, &note)?;
        }
        Ok(())
    }
}

fn median(pass: &mut impl FnMut() -> String) -> (Duration, String) {
    let mut times = Vec::new();
    let mut note = String::new();
    for _ in 0..PASSES {
        let start = Instant::now();
        note = pass();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    (times[PASSES / 2], note)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn per_second(things: usize, time: Duration) -> f64 {
    things as f64 / time.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn share(part: usize) -> String {
    format!("{:.1} % left", part as f64 / TOTAL as f64 * 100.0)
}

fn zeros(bench: &Bench, bytes: &[u8]) -> Outcome {
    bench.stage("zero test", Entropy::Zero, || {
        assert!(bytes.chunks(CHUNK).all(|b| is_zero(black_box(b))), "all zero");
        String::new()
    })?;
    bench.stage("page cutter", Entropy::Zero, || cut_pages(bytes))
}

fn cut_pages(bytes: &[u8]) -> String {
    let mut pieces = Vec::new();
    let mut count = 0;
    for region in bytes.chunks(usize::try_from(REGION_BYTES).unwrap_or(usize::MAX)) {
        pieces.clear();
        PageCutter::DEFAULT.cut(42, black_box(region), &mut pieces);
        count += pieces.len();
    }
    format!("{count} pieces")
}

fn reading(bench: &Bench, entropy: Entropy, bytes: &[u8]) -> Outcome {
    if bench.wants("memcpy") {
        let mut target = vec![1; TOTAL];
        bench.stage("memcpy", entropy, || {
            for (to, from) in target.chunks_mut(CHUNK).zip(bytes.chunks(CHUNK)) {
                black_box(to).copy_from_slice(from);
            }
            String::new()
        })?;
    }
    bench.stage("zero test", entropy, || {
        let zero = bytes.chunks(PAGE).filter(|p| is_zero(black_box(p))).count();
        format!("{zero} pages; decided by the first bytes")
    })?;
    bench.stage("page cutter", entropy, || cut_pages(bytes))?;
    bench.stage("stream cutter (fastcdc)", entropy, || {
        let mut pieces = Vec::new();
        let mut count = 0;
        for region in bytes.chunks(usize::try_from(REGION_BYTES).unwrap_or(usize::MAX)) {
            pieces.clear();
            StreamCutter::DEFAULT.cut(42, black_box(region), true, &mut pieces);
            count += pieces.len();
        }
        format!("{count} pieces")
    })?;
    let keys = domain()?;
    let domain = keys.chunks();
    bench.stage("identify (keyed BLAKE3)", entropy, || {
        for chunk in bytes.chunks(CHUNK) {
            black_box(domain.identify(black_box(chunk)));
        }
        String::new()
    })?;
    bench.stage("identify, with page digests", entropy, || {
        for chunk in bytes.chunks(CHUNK) {
            black_box(domain.identify_pages(black_box(chunk)));
        }
        String::new()
    })
}

fn compressing(bench: &Bench, entropy: Entropy, bytes: &[u8]) -> Outcome {
    for level in [-3, -1, 1, 2, 3, 5, 9] {
        let mut compressor = Compressor::new(Level::new(level)?)?;
        let mut out = vec![0; CHUNK];
        bench.stage(&format!("zstd {level}"), entropy, || {
            let left = bytes
                .chunks(CHUNK)
                .map(|chunk| compressor.compress(chunk, black_box(&mut out)).unwrap_or(chunk.len()))
                .sum();
            share(left)
        })?;
    }
    Ok(())
}

/// Fills packs, and opens their chunks.
fn packing(bench: &Bench, entropy: Entropy, bytes: &[u8]) -> Outcome {
    let open_stage = "open (AES, zstd, BLAKE3)";
    let append_stage = |level| format!("append (zstd {level}, AES)");
    let levels = [1, 3];
    if !bench.wants(open_stage) && !levels.iter().any(|&l| bench.wants(&append_stage(l))) {
        return Ok(());
    }
    let keys = domain()?;
    let domain = keys.chunks();
    let repository = REPOSITORY;
    let target = PackTarget { repository, kind: PackKind::Data, recipient: keys.recipient(PackKind::Data) };
    let chunks: Vec<(ChunkId, &[u8])> = bytes.chunks(CHUNK).map(|c| (domain.identify(c), c)).collect();
    let fill_packs = |level, done: &mut dyn FnMut(SealedPack, Vec<(ChunkId, Place)>) -> Vec<u8>| -> Outcome {
        let mut compressor = Compressor::new(Level::new(level)?)?;
        let mut builder = PackBuilder::new(target, vec![0; PACK_BYTES]);
        let mut places = Vec::new();
        for (id, chunk) in &chunks {
            if !builder.fits(chunk.len()) {
                let buffer = done(builder.finish()?, std::mem::take(&mut places));
                builder = PackBuilder::new(target, buffer);
            }
            places.push((*id, builder.append(id, chunk, &mut compressor)));
        }
        done(builder.finish()?, places);
        Ok(())
    };
    for level in levels {
        bench.stage(&append_stage(level), entropy, || {
            let mut left = 0;
            let filled = fill_packs(level, &mut |pack, _| {
                left += pack.bytes.len();
                let mut buffer = pack.bytes;
                buffer.resize(PACK_BYTES, 0);
                buffer
            });
            filled.map_or_else(|e| e.to_string(), |()| share(left))
        })?;
    }
    if !bench.wants(open_stage) {
        return Ok(());
    }
    let mut packs = Vec::new();
    fill_packs(3, &mut |pack, places| {
        packs.push((pack, places));
        vec![0; PACK_BYTES]
    })?;
    let mut sealed_chunks: Vec<(ChunkId, Place, SlotKey, &[u8])> = Vec::new();
    for (pack, places) in &packs {
        let key = pack.key.open(keys.secret(PackKind::Data), &repository, &pack.id, PackKind::Data)?;
        for (id, place) in places {
            let sealed = &pack.bytes[place.offset as usize..][..place.sealed_len as usize];
            sealed_chunks.push((*id, *place, slot_key(&key, place.slot), sealed));
        }
    }
    let mut opener = SlotOpener::new(repository)?;
    let mut scratch = vec![0; 2 * CHUNK];
    let mut plain = vec![0; CHUNK];
    bench.stage(open_stage, entropy, || {
        let mut failed = 0;
        for (id, place, key, sealed) in &sealed_chunks {
            let scratch = &mut scratch[..sealed.len()];
            scratch.copy_from_slice(sealed);
            let opened = opener.open(id, place, key, scratch, black_box(&mut plain), |b| domain.identify(b));
            failed += usize::from(opened.is_err());
        }
        format!("{failed} failed; with a copy of the sealed bytes")
    })
}

/// Looks up chunks in a mapped segment.
fn index(bench: &Bench) -> Outcome {
    if !["index hit", "index miss"].iter().any(|s| bench.wants(s)) {
        return Ok(());
    }
    let mut noise = noise(3);
    let mut ids = |n: usize| -> Vec<ChunkId> {
        let id = |_| {
            let mut b = [0; ChunkId::LEN];
            noise.fill(&mut b);
            ChunkId::from_bytes(b)
        };
        (0..n).map(id).collect()
    };
    let (known, unknown) = (ids(ENTRIES), ids(ENTRIES));
    let pack = PackId::from_bytes([1; 16]);
    let info = PackInfo {
        id: pack,
        kind: PackKind::Data,
        length: 1,
        digest: [0; 32],
        version: Version(String::new()),
        key: SealedKey { encapsulated: [0; 32], ciphertext: [0; 48], slots: 0, directory_len: 0 },
        locked_until: None,
    };
    let place = Place { pack, slot: 0, offset: 64, sealed_len: 100, plain_len: 200, codec: Codec::Zstd };
    let segment = Segment::new(vec![info], known.iter().map(|id| (*id, place)).collect());
    let folder = tempfile::tempdir()?;
    let ring = KeyRing::from_secret(&Secret::from_bytes([1; 32]));
    let cache = IndexCache::new(Some(folder.path()), &RepositoryId::from_bytes([1; 16]), &ring);
    let mapped = cache.store(&SegmentId::from_bytes([1; 16]), &segment.encode())?;
    drop(segment);
    for (stage, ids, wanted) in [("index hit", &known, ENTRIES), ("index miss", &unknown, 0)] {
        if bench.wants(stage) {
            let (time, note) = median(&mut || {
                let found = ids.iter().filter(|id| mapped.find(black_box(id)).is_some()).count();
                assert!(found == wanted, "{found} found");
                format!("{ENTRIES} entries")
            });
            let rate = format!("{:.2} M/s", per_second(ENTRIES, time) / 1e6);
            line(stage, "random", &rate, &note)?;
        }
    }
    Ok(())
}

const REPOSITORY: RepositoryId = RepositoryId::from_bytes([9; 16]);

fn domain() -> Outcome<Domain> {
    let ring = KeyRing::from_secret(&Secret::from_bytes([1; 32]));
    let id = DomainId { app: ring.app_hash(&AppId::local("bench".parse()?)), number: 0 };
    Ok(Domain::generate(id, &REPOSITORY, &ring).0)
}
