//! `lookups`: an index of 10^8 chunks, mapped from files: how many lookups a second, and how much memory stays
//! resident.
//!
//! ```text
//! cargo run --release -p milkrun-benches --bin lookups                  10^8 entries, in the system's temporary folder
//! cargo run --release -p milkrun-benches --bin lookups -- 10000000 DIR
//! ```
//! It looks up known ids and unknown ids, in batches of 1,000 as agents do.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use milkrun_repository::chunk::codec::Codec;
use milkrun_repository::id::{ChunkId, PackId, RepositoryId, SegmentId};
use milkrun_repository::index::{ChunkIndex, IndexCache, PackInfo, Segment};
use milkrun_repository::keys::{KeyRing, Secret};
use milkrun_repository::pack::{PackKind, Place, SealedKey};
use milkrun_repository::store::Version;

const PER_SEGMENT: u64 = 4_000_000;
const PER_PACK: u64 = 400;
const BATCH: u64 = 1000;
const DURATION: Duration = Duration::from_secs(5);

/// The id of the n-th chunk: known below the number of entries, unknown above.
fn id(n: u64) -> ChunkId {
    ChunkId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn pack_id(n: u64) -> PackId {
    let hash = blake3::hash(&(n | 1 << 63).to_le_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_bytes()[..16]);
    PackId::from_bytes(bytes)
}

fn segment(from: u64, to: u64) -> Segment {
    let packs = (from / PER_PACK..=(to - 1) / PER_PACK).map(|p| PackInfo {
        id: pack_id(p),
        kind: PackKind::Data,
        length: 32 << 20,
        digest: [7; 32],
        version: Version("3sL4kqtJlcpXroDTDmJ".into()),
        key: SealedKey { encapsulated: [1; 32], ciphertext: [2; 48], slots: 400, directory_len: 20_000 },
        locked_until: None,
    });
    let entry = |n: u64| {
        let place = Place {
            pack: pack_id(n / PER_PACK),
            slot: u32::try_from(n % PER_PACK).unwrap_or(0),
            offset: 64,
            sealed_len: 70_000,
            plain_len: 131_072,
            codec: Codec::Zstd,
        };
        (id(n), place)
    };
    Segment::new(packs.collect(), (from..to).map(entry).collect())
}

/// (resident, anonymous) bytes of this process.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) << 10
    };
    (of("VmRSS:"), of("RssAnon:"))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let entries: u64 = args.next().map_or(Ok(100_000_000), |a| a.parse())?;
    let folder = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder)?;
    let cache = IndexCache::new(
        Some(folder.path()),
        &RepositoryId::from_bytes([1; 16]),
        &KeyRing::from_secret(&Secret::from_bytes([1; 32])),
    );
    let mut out = std::io::stdout().lock();
    let mut index = ChunkIndex::default();
    let began = Instant::now();
    let before = memory();
    for from in (0..entries).step_by(usize::try_from(PER_SEGMENT)?) {
        let body = segment(from, (from + PER_SEGMENT).min(entries)).encode();
        let id = SegmentId::random();
        index.written(id, cache.store(&id, &body)?);
    }
    writeln!(
        out,
        "{entries} entries in {} segments, made in {:.0} s",
        index.segment_count(),
        began.elapsed().as_secs_f64()
    )?;
    let tib = entries as f64 * 131_072.0 / (1u64 << 40) as f64;
    let report = |out: &mut dyn Write, what: &str, first: u64, known: bool| -> Result<(), Box<dyn Error>> {
        let (began, mut asked, mut found, mut n) = (Instant::now(), 0u64, 0u64, first);
        while began.elapsed() < DURATION {
            for _ in 0..BATCH {
                // Ids are spread over all entries, as hashes are.
                n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let which = if known { n % entries } else { entries + n % entries };
                found += u64::from(index.find(&id(which)).is_some());
                asked += 1;
            }
        }
        let rate = asked as f64 / began.elapsed().as_secs_f64();
        let (resident, anonymous) = memory();
        writeln!(
            out,
            "{what}: {rate:.0} lookups/s, {found} of {asked} found; resident {} MiB ({:.1} MiB per TiB at 128 KiB), of it anonymous {} MiB",
            resident >> 20,
            (resident - before.0) as f64 / (1 << 20) as f64 / tib,
            anonymous >> 20
        )?;
        assert!(known == (found == asked) || !known && found == 0, "the index answers wrongly");
        Ok(())
    };
    report(&mut out, "unknown", 1, false)?;
    report(&mut out, "known", 2, true)?;
    Ok(())
}
