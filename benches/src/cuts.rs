//! `cuts`: what the average chunk size costs and saves, over the generations of one volume.
//!
//! ```text
//! benches/peers --postgres --images-only /tmp/images
//! cargo run --release -p milkrun-benches --bin cuts -- /tmp/images/postgres/*/volume.img
//! ```
//! Each size is cut, identified and compressed as a backup does it (no prediction), the chunks are laid into packs in that
//! order, and a restore of the last generation is planned. Nothing is stored.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use milkrun_repository::chunk::Piece;
use milkrun_repository::chunk::codec::{Codec, Compressor, Level};
use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::config::REGION_BYTES;
use milkrun_repository::id::{ChunkId, PackId};
use milkrun_repository::keys::DomainKey;
use milkrun_repository::pack::Place;
use milkrun_repository::restore_plan::{Limits, plan};
use milkrun_repository::volume_map::Extent;

const KIB: usize = 1 << 10;
const PACK_BYTES: u32 = 32 << 20;
/// Tag of a sealed slot.
const TAG: usize = 16;
/// As many leaves are planned at once as a restore does.
const WINDOW: usize = 32;

/// What is known of one average size after each generation.
struct Store {
    cutter: PageCutter,
    domain: DomainKey,
    compressor: Compressor,
    known: HashMap<ChunkId, Place>,
    pack: u32,
    slot: u32,
    offset: u32,
}

/// What one generation did.
#[derive(Default)]
struct Generation {
    new: u64,
    stored: u64,
    extents: Vec<(u64, Extent)>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if files.is_empty() {
        return Err("name the generations of a volume, the first one first".into());
    }
    let mut out = std::io::stdout().lock();
    write!(out, "{:>9} {:>11}", "average", "stored MiB")?;
    for n in 1..files.len() {
        write!(out, " {:>9} {:>11}", format!("+{n} new"), "stored MiB")?;
    }
    writeln!(out, " {:>9} {:>10} {:>10} {:>11}", "all MiB", "chunks/GiB", "ranges/GiB", "read/needed")?;
    for average in [16, 32, 64, 128, 256, 512] {
        let mut store = Store::new(average * KIB)?;
        let mut generations = Vec::new();
        for file in &files {
            generations.push(store.add(file)?);
        }
        write!(out, "{:>5} KiB {:>11}", average, mib(generations[0].stored))?;
        for g in &generations[1..] {
            write!(out, " {:>9} {:>11}", mib(g.new), mib(g.stored))?;
        }
        let all: u64 = generations.iter().map(|g| g.stored).sum();
        if let Some(last) = generations.last() {
            writeln!(out, " {:>9} {}", mib(all), restore(last))?;
        }
    }
    Ok(())
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// Chunks and ranged reads for each GiB of data, and bytes read for each byte that is needed.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn restore(g: &Generation) -> String {
    let data: u64 =
        g.extents.iter().filter(|(_, e)| matches!(e, Extent::Data { .. })).map(|(_, e)| u64::from(e.len())).sum();
    let gib = data as f64 / f64::from(1 << 30);
    let chunks = g.extents.iter().filter(|(_, e)| matches!(e, Extent::Data { .. })).count();
    let (mut ranges, mut read, mut needed) = (0, 0, 0);
    let window = WINDOW as u64 * REGION_BYTES;
    let mut rest = g.extents.as_slice();
    while let Some(&(first, _)) = rest.first() {
        let end = rest.partition_point(|&(at, _)| at < first + window);
        for range in plan(&rest[..end], Limits::DEFAULT, false) {
            ranges += 1;
            read += range.end - range.start;
            needed += range.chunks.iter().map(|c| u64::from(c.place.sealed_len)).sum::<u64>();
        }
        rest = &rest[end..];
    }
    format!("{:>10.0} {:>10.0} {:>11.2}", chunks as f64 / gib, f64::from(ranges) / gib, read as f64 / needed as f64)
}

impl Store {
    fn new(average: usize) -> Result<Self, Box<dyn Error>> {
        // The other parameters keep their relation to the average.
        let scale = |pages: u32| (pages as usize * average / (PageCutter::DEFAULT.avg_pages as usize * 4 * KIB)).max(1);
        let d = PageCutter::DEFAULT;
        let cutter = PageCutter {
            min_pages: u32::try_from(scale(d.min_pages))?,
            avg_pages: u32::try_from(average / (4 * KIB))?,
            max_pages: u32::try_from(scale(d.max_pages))?,
            hole_pages: d.hole_pages,
        };
        cutter.check()?;
        Ok(Self {
            cutter,
            domain: DomainKey::from_bytes([7; 32]),
            compressor: Compressor::new(Level::DEFAULT)?,
            known: HashMap::new(),
            pack: 0,
            slot: 0,
            offset: 0,
        })
    }

    fn add(&mut self, path: &Path) -> Result<Generation, Box<dyn Error>> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut out = Generation::default();
        let mut region = vec![0; usize::try_from(REGION_BYTES)?];
        let mut compressed = vec![0; (8 << 20) + TAG];
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < len {
            let n = usize::try_from((len - at).min(REGION_BYTES))?;
            file.read_exact_at(&mut region[..n], at)?;
            pieces.clear();
            self.cutter.cut(self.domain.cut_seed(), &region[..n], &mut pieces);
            for piece in &pieces {
                let Piece::Data { offset, len } = *piece else { continue };
                let bytes = &region[offset..offset + len];
                let id = self.domain.identify(bytes);
                let place = match self.known.get(&id) {
                    Some(place) => *place,
                    None => {
                        let (codec, stored) = self.compressor.compress(bytes, &mut compressed);
                        let place = self.place(stored + TAG, len, codec)?;
                        self.known.insert(id, place);
                        out.new += len as u64;
                        out.stored += (stored + TAG) as u64;
                        place
                    }
                };
                let extent = Extent::Data { len: u32::try_from(len)?, chunk_offset: 0, id, place, pages: None };
                out.extents.push((at + offset as u64, extent));
            }
            at += n as u64;
        }
        // A backup ends its packs.
        self.pack += 1;
        (self.slot, self.offset) = (0, 0);
        Ok(out)
    }

    fn place(&mut self, sealed: usize, plain: usize, codec: Codec) -> Result<Place, Box<dyn Error>> {
        let sealed_len = u32::try_from(sealed)?;
        if self.offset + sealed_len > PACK_BYTES {
            self.pack += 1;
            (self.slot, self.offset) = (0, 0);
        }
        let mut pack = [0; 16];
        pack[..4].copy_from_slice(&self.pack.to_be_bytes());
        let place = Place {
            pack: PackId::from_bytes(pack),
            slot: self.slot,
            offset: self.offset,
            sealed_len,
            plain_len: u32::try_from(plain)?,
            codec,
        };
        self.slot += 1;
        self.offset += sealed_len;
        Ok(place)
    }
}
