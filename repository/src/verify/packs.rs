//! Checking every pack: it is there, it is locked, and its directory agrees with maps and index. For a share of the packs, every
//! byte and chunk is checked.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::StreamExt;

use super::maps::{Expected, Slots, fingerprint};
use super::needed::{Needed, NeededPacks};
use super::pages::Kept;
use super::{Findings, Report};
use crate::clock::entropy;
use crate::id::{DomainId, PackId};
use crate::index::{ChunkIndex, IndexCache};
use crate::keys::Domain;
use crate::pack::{Directory, PackKind, SlotOpener, slot_key};
use crate::point::catalog::chain;
use crate::repository::{NoDomain, Repository};
use crate::store::{Failure, GetError, Key};

#[derive(Default)]
struct Looked {
    /// What is wrong with the pack.
    findings: Vec<String>,
    bytes_read: u64,
    chunks_opened: u64,
    extents_compared: u64,
    whole: bool,
    index_entries: u64,
    /// Whether nothing new should refer to the pack.
    damaged: bool,
}

impl Looked {
    fn and_damaged(mut self, reason: String) -> Self {
        self.damaged = true;
        self.findings.push(reason);
        self
    }
}

pub(super) async fn check(
    repository: &Repository,
    cache: &IndexCache,
    needed: &NeededPacks,
    expected: Expected,
    (chosen, parallel): (&BTreeSet<PackId>, usize),
    report: &mut Report,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let index = index_expectations(repository, cache, needed).await?;
    let (expected, index) = (&expected, &index);
    report.packs += needed.len() as u64;
    let looks = needed.all().map(|n| async move {
        let id = &n.info.id;
        let whole = chosen.contains(id).then(|| expected.pages.get(id).cloned().unwrap_or_default());
        Ok::<_, Failure>((n, look(repository, n, expected.slots.get(id), index.get(id), whole).await?))
    });
    let mut looks = futures::stream::iter(looks).buffer_unordered(parallel.max(1));
    while let Some(looked) = looks.next().await {
        let (needed, looked) = looked?;
        report.packs_read += u64::from(looked.whole);
        report.bytes_read += looked.bytes_read;
        report.chunks_opened += looked.chunks_opened;
        report.extents_compared += looked.extents_compared;
        report.index_entries += looked.index_entries;
        if looked.damaged {
            findings.damaged.insert(needed.info.id);
        }
        for reason in looked.findings {
            findings.add(Key::pack(&needed.info.id), reason, needed.points.iter().copied());
        }
    }
    Ok(())
}

/// What the index of each application says about the needed packs.
async fn index_expectations(
    repository: &Repository,
    cache: &IndexCache,
    needed: &NeededPacks,
) -> Result<Slots, Failure> {
    let domains: BTreeSet<DomainId> = needed.all().map(|n| n.domain).collect();
    let mut out = Slots::new();
    for domain in domains {
        let (ring, id) = (&repository.ring, &repository.config.id);
        let index = ChunkIndex::load(&*repository.store, ring, id, &domain, cache).await?;
        for (id, place) in index.entries().filter(|(_, p)| needed.contains(&p.pack)) {
            out.entry(place.pack).or_default().push((place.slot, fingerprint(&id, &place)));
        }
    }
    Ok(out)
}

/// A random share, rounded up to whole packs.
pub(super) fn choose(needed: &NeededPacks, percent: u8) -> BTreeSet<PackId> {
    let key = entropy::<32>();
    let mut packs: Vec<PackId> = needed.packs().collect();
    packs.sort_by_cached_key(|id| *blake3::keyed_hash(&key, id.as_bytes()).as_bytes());
    packs.truncate((packs.len() * usize::from(percent.min(100))).div_ceil(100));
    packs.into_iter().collect()
}

async fn look(
    repository: &Repository,
    needed: &Needed,
    expected: Option<&Vec<(u32, u64)>>,
    index: Option<&Vec<(u32, u64)>>,
    pages: Option<Vec<Kept>>,
) -> Result<Looked, Failure> {
    // `pages` are given for a pack that is read whole.
    let whole = pages.is_some();
    let info = &needed.info;
    let key = Key::pack(&info.id);
    let mut looked = Looked { whole, ..Looked::default() };
    match repository.store.head(&key, Some(&info.version)).await {
        Ok(head) => {
            // An unlocked pack still holds its data: it is a finding, but not damage.
            match needed.promise.missing(&*repository.store, &key, &info.version, &head).await {
                Ok(reason) => looked.findings.extend(reason),
                Err(GetError::NotFound(_)) => return Ok(looked.and_damaged("missing".into())),
                Err(GetError::Failed(f)) => return Err(f),
            }
            if head.length != info.length {
                return Ok(looked.and_damaged(format!("has {} bytes instead of {}", head.length, info.length)));
            }
        }
        Err(GetError::NotFound(_)) => return Ok(looked.and_damaged("missing".into())),
        Err(GetError::Failed(f)) => return Err(f),
    }
    let start = if whole { 0 } else { info.length.saturating_sub(Directory::tail_len(&info.key)) };
    let bytes = match repository.store.get(&key, Some(&info.version), Some(start..info.length)).await {
        Ok(bytes) => bytes,
        Err(GetError::NotFound(_)) => return Ok(looked.and_damaged("missing".into())),
        Err(GetError::Failed(f)) => return Err(f),
    };
    let domain = match repository.domain(needed.domain).await {
        Ok(domain) => domain,
        Err(NoDomain::Store(f)) => return Err(f),
        Err(e) => return Ok(looked.and_damaged(chain(&e))),
    };
    let directory = match directory(repository, needed, &bytes, &domain) {
        Ok(directory) => directory,
        Err(reason) => return Ok(looked.and_damaged(reason)),
    };
    let slots: HashMap<u32, u64> = directory.slots.iter().map(|(id, p)| (p.slot, fingerprint(id, p))).collect();
    let differ = |list: Option<&Vec<(u32, u64)>>| {
        list.into_iter().flatten().filter(|(slot, print)| slots.get(slot) != Some(print)).count()
    };
    let (by_map, by_index) = (differ(expected), differ(index));
    if by_map > 0 {
        looked = looked.and_damaged(format!("its directory contradicts {by_map} entries of volume maps"));
    }
    if by_index > 0 {
        looked = looked.and_damaged(format!("its directory contradicts {by_index} entries of the index"));
    }
    looked.index_entries = index.map_or(0, |i| i.len() as u64);
    if let Some(pages) = pages {
        looked.bytes_read = info.length;
        let opened = open_all(repository, needed, bytes, directory, domain, pages).await;
        (looked.chunks_opened, looked.extents_compared) = (opened.chunks, opened.extents_compared);
        looked.damaged |= !opened.reasons.is_empty();
        looked.findings.extend(opened.reasons);
        looked.findings.extend(opened.unable);
        if opened.other_pages > 0 {
            looked.findings.push(format!(
                "maps keep other digests of its pages than its bytes have, in {} extents: a later backup may take a page that \
                 changed for one that did not; make one with --parent none",
                opened.other_pages
            ));
        }
    }
    Ok(looked)
}

fn directory(repository: &Repository, needed: &Needed, bytes: &[u8], domain: &Domain) -> Result<Directory, String> {
    let (info, id) = (&needed.info, &repository.config.id);
    let footer = Directory::footer(bytes).map_err(|e| format!("footer: {}", chain(&e)))?;
    if footer != info.key {
        return Err("its footer is another than the placement signs".into());
    }
    let pack_key = footer.open(domain.secret(info.kind), id, &info.id, info.kind).map_err(|e| chain(&e))?;
    Directory::open(bytes, info.length, id, &info.id, &pack_key, &footer).map_err(|e| chain(&e))
}

/// The result of opening a pack's chunks.
#[derive(Default)]
struct Opened {
    chunks: u64,
    extents_compared: u64,
    /// Extents for which maps keep other digests of pages.
    other_pages: u64,
    /// Chunks that did not open, or are not what they must be.
    reasons: Vec<String>,
    /// Why the chunks could not be checked. This says nothing about the pack.
    unable: Option<String>,
}

/// Opens every chunk and compares the digests of its pages, off the async threads.
async fn open_all(
    repository: &Repository,
    needed: &Needed,
    bytes: bytes::Bytes,
    directory: Directory,
    domain: Arc<Domain>,
    mut pages: Vec<Kept>,
) -> Opened {
    let info = needed.info.clone();
    let id = repository.config.id;
    let pack_key = match info.key.open(domain.secret(info.kind), &id, &info.id, info.kind) {
        Ok(key) => key,
        Err(e) => return Opened { reasons: vec![chain(&e)], ..Opened::default() },
    };
    let work = tokio::task::spawn_blocking(move || {
        let mut done = Opened::default();
        if blake3::hash(&bytes).as_bytes() != &info.digest {
            done.reasons.push("its bytes are not those that the placement signs".to_owned());
        }
        match Directory::check_header(&bytes, &id, &info.id) {
            Ok(head) if head.kind != info.kind => {
                done.reasons.push("is of another kind than the placement says".into())
            }
            Ok(head) if head.recipient != domain.recipient(info.kind).tag() => {
                done.reasons.push("its header names other keys than the application's".into());
            }
            Ok(_) => {}
            Err(e) => done.reasons.push(chain(&e)),
        }
        let mut opener = match SlotOpener::new(id) {
            Ok(opener) => opener,
            Err(e) => return Opened { unable: Some(e.to_string()), ..done },
        };
        let (mut sealed, mut plain) = (Vec::new(), Vec::new());
        pages.sort_unstable_by_key(|p| p.slot);
        for (chunk, place) in &directory.slots {
            let Some(slot) = bytes.get(place.offset as usize..usize::try_from(place.end()).unwrap_or(usize::MAX))
            else {
                done.reasons.push(format!("slot {} lies outside of the pack", place.slot));
                continue;
            };
            if info.kind == PackKind::Data && !place.is_of_a_chunk() {
                done.reasons.push(format!("slot {} is said to be longer than a chunk can be", place.slot));
                continue;
            }
            sealed.clear();
            sealed.extend_from_slice(slot);
            plain.resize(place.plain_len as usize, 0);
            let key = slot_key(&pack_key, place.slot);
            let mut digests = Vec::new();
            let identify = |bytes: &[u8]| {
                let (id, of_pages) = domain.chunks().identify_pages(bytes);
                digests = of_pages;
                id
            };
            match opener.open(chunk, place, &key, &mut sealed, &mut plain, identify) {
                Ok(()) => {
                    done.chunks += 1;
                    let first = pages.partition_point(|p| p.slot < place.slot);
                    let of_slot = pages[first..].iter().take_while(|p| p.slot == place.slot);
                    for kept in of_slot {
                        done.extents_compared += 1;
                        done.other_pages += u64::from(!kept.agrees(&digests));
                    }
                }
                Err(e) => done.reasons.push(format!("slot {} at byte {}: {}", place.slot, place.offset, chain(&e))),
            }
        }
        done
    });
    match work.await {
        Ok(done) => done,
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}
