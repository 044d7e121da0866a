//! `restore_floor`: the lower bound of a restore to a file, for `benches/peers`. It measures the two parts that no
//! restore can do without, each by itself. There are as many threads as cores. First, chunks are read from a file and
//! opened (AES-GCM, zstd at level 3, BLAKE3). Then as many bytes are written; each thread writes to its own file, so
//! that none waits for another's lock. There is no plan, no order, no requests, and no checks of the target.
//!
//! ```text
//! restore_floor IMAGE FOLDER      IMAGE's data, in FOLDER; before each part it prints its name, and waits for a line
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use milkrun_repository::chunk::codec::{Compressor, Level};
use milkrun_repository::chunk::is_zero;
use milkrun_repository::id::{AppId, ChunkId, DomainId, RepositoryId};
use milkrun_repository::keys::{Domain, DomainKey, KeyRing, Secret};
use milkrun_repository::pack::{PackBuilder, PackKind, PackTarget, Place, SealedPack, SlotKey, SlotOpener, slot_key};

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// The length of each chunk: the average one.
const CHUNK: usize = 128 << 10;
const PACK_BYTES: usize = 32 << 20;
/// Consecutive chunks that a thread takes at a time: 8 MiB.
const TAKEN: usize = 64;

/// A sealed chunk: its offset in the target, its offset in the file, and what is needed to open it.
struct Sealed {
    target: u64,
    source: u64,
    id: ChunkId,
    place: Place,
    key: SlotKey,
}

/// What is done to each chunk.
#[derive(Clone, Copy)]
enum Part {
    Opening,
    Writing,
}

fn main() -> Outcome {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(Into::into).collect();
    let [image, folder] = &args[..] else { return Err("restore_floor IMAGE FOLDER".into()) };
    let ring = KeyRing::from_secret(&Secret::from_bytes([1; 32]));
    let repository = RepositoryId::from_bytes([9; 16]);
    let domain = Domain::generate(
        DomainId { app: ring.app_hash(&AppId::local("bench".parse()?)), number: 0 },
        &repository,
        &ring,
    )
    .0;
    let target = PackTarget { repository, kind: PackKind::Data, recipient: domain.recipient(PackKind::Data) };
    let path = folder.join("sealed");
    let chunks = seal(image, &path, &domain, target)?;
    let mut lines = std::io::stdin().lock().lines();
    for (name, part) in [("opening", Part::Opening), ("writing", Part::Writing)] {
        say(name)?;
        lines.next().ok_or("no line to begin at")??;
        let began = Instant::now();
        let threads = std::thread::available_parallelism()?.get();
        let next = AtomicUsize::new(0);
        let files: Vec<PathBuf> = (0..threads).map(|n| folder.join(format!("out-{n}"))).collect();
        let work = |file: &PathBuf| run(part, &path, file, &chunks, &next, domain.chunks(), repository);
        std::thread::scope(|scope| -> Outcome {
            let running: Vec<_> = files.iter().map(|f| scope.spawn(|| work(f))).collect();
            running.into_iter().try_for_each(|r| r.join().map_err(|_| "a thread panicked")?)
        })?;
        say(&format!("{:.3}", began.elapsed().as_secs_f64()))?;
        files.iter().try_for_each(std::fs::remove_file)?;
    }
    std::fs::remove_file(path)?;
    Ok(())
}

fn say(line: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Seals all chunks of the image that are not zero into a file.
fn seal(image: &Path, out: &Path, domain: &Domain, target: PackTarget) -> Outcome<Vec<Sealed>> {
    let (image, out) = (File::open(image)?, File::create_new(out)?);
    let mut compressor = Compressor::new(Level::new(3)?)?;
    let (mut chunks, mut written) = (Vec::new(), 0);
    let mut put = |pack: SealedPack, places: Vec<(u64, ChunkId, Place)>| -> Outcome {
        let key = pack.key.open(domain.secret(PackKind::Data), &target.repository, &pack.id, PackKind::Data)?;
        out.write_all_at(&pack.bytes, written)?;
        let sealed = |(target, id, place): (u64, ChunkId, Place)| {
            let source = written + u64::from(place.offset);
            Sealed { target, source, id, place, key: slot_key(&key, place.slot) }
        };
        chunks.extend(places.into_iter().map(sealed));
        written += pack.bytes.len() as u64;
        Ok(())
    };
    let mut builder = PackBuilder::new(target, vec![0; PACK_BYTES]);
    let mut places = Vec::new();
    let (mut chunk, len) = (vec![0; CHUNK], image.metadata()?.len());
    for at in (0..len).step_by(CHUNK) {
        let wanted = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
        let chunk = &mut chunk[..wanted];
        image.read_exact_at(chunk, at)?;
        if is_zero(chunk) {
            continue;
        }
        if !builder.fits(chunk.len()) {
            let full = std::mem::replace(&mut builder, PackBuilder::new(target, vec![0; PACK_BYTES]));
            put(full.finish()?, std::mem::take(&mut places))?;
        }
        let id = domain.chunks().identify(chunk);
        places.push((at, id, builder.append(&id, chunk, &mut compressor)));
    }
    put(builder.finish()?, places)?;
    Ok(chunks)
}

/// One thread's share of a part.
fn run(
    part: Part,
    from: &Path,
    to: &Path,
    chunks: &[Sealed],
    next: &AtomicUsize,
    domain: &DomainKey,
    repository: RepositoryId,
) -> Outcome {
    let (from, to) = (File::open(from)?, File::create_new(to)?);
    let mut opener = SlotOpener::new(repository)?;
    let (mut sealed, mut plain) = (vec![1; 2 * CHUNK], vec![1; CHUNK]);
    loop {
        let first = next.fetch_add(TAKEN, Ordering::Relaxed);
        if first >= chunks.len() {
            return Ok(());
        }
        for c in &chunks[first..chunks.len().min(first + TAKEN)] {
            let plain = &mut plain[..c.place.plain_len as usize];
            match part {
                Part::Opening => {
                    let sealed = &mut sealed[..c.place.sealed_len as usize];
                    from.read_exact_at(sealed, c.source)?;
                    opener.open(&c.id, &c.place, &c.key, sealed, plain, |b| domain.identify(b))?;
                }
                Part::Writing => to.write_all_at(plain, c.target)?,
            }
        }
    }
}
