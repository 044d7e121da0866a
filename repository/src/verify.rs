//! Proofs that restore points are whole.
//!
//! Three depths: the *structure* (every root, placement, map, directory and index entry agrees; every pack is there and
//! locked long enough), the *data* (all or a share of the packs are read, every chunk opened and compared with the digests of
//! pages that maps keep of it), and, with the *public
//! key alone*, every stored byte read and compared with what the placements sign. A finding names the object and each
//! restore point that it touches. That the store can't be asked is an error, never a finding.

mod maps;
mod packs;
mod pages;
mod public;

pub use public::{PublicError, verify_public};

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::Moment;
use crate::id::{AppHash, PackId, PointId};
use crate::index::{IndexCache, PackInfo};
use crate::metadata::MetadataError;
use crate::point::catalog::{Found, Listing, PlaceError, chain};
use crate::point::commit::locked_enough;
use crate::repository::{OpenPoint, PointError, Repository};
use crate::store::{Failure, Firmness, GetError, Key, Lock, Store};

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only these applications (all, when empty and no points are named).
    pub apps: Vec<AppHash>,
    /// Only these points.
    pub points: Vec<PointId>,
    /// Read and open this share of the packs, in percent (0: none).
    pub data_percent: u8,
    /// How many packs are read at once.
    pub parallel: usize,
}

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The object's key.
    pub object: String,
    /// What is wrong with it.
    pub reason: String,
    /// The points that it touches.
    pub points: BTreeSet<PointId>,
}

/// What was checked, and what was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Restore points.
    pub points: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Packs that were asked for.
    pub packs: u64,
    /// Map chunks that were read.
    pub map_chunks: u64,
    /// References from maps to chunks that were compared with directories.
    pub extents: u64,
    /// Index entries that were compared with directories.
    pub index_entries: u64,
    /// Packs that were read whole.
    pub packs_read: u64,
    /// Bytes that were read and proved.
    pub bytes_read: u64,
    /// Chunks that were opened.
    pub chunks_opened: u64,
    /// Extents of which the digests of pages were compared with the bytes.
    pub extents_compared: u64,
    /// Packs that hold something else than they must, or are gone, by application: nothing new should refer to them.
    pub damaged: BTreeMap<AppHash, BTreeSet<PackId>>,
    /// Findings, sorted, each object and reason once.
    pub findings: Vec<Finding>,
}

/// A pack that points need.
struct Needed {
    info: PackInfo,
    lock_until: Option<Moment>,
    firm: Option<Firmness>,
    points: BTreeSet<PointId>,
    app: AppHash,
}

#[derive(Default)]
struct Findings {
    by_object: BTreeMap<(String, String), BTreeSet<PointId>>,
    /// Packs that nothing new should refer to.
    damaged: BTreeSet<PackId>,
}

impl Findings {
    fn add(&mut self, object: impl ToString, reason: impl ToString, points: impl IntoIterator<Item = PointId>) {
        self.by_object.entry((object.to_string(), reason.to_string())).or_default().extend(points);
    }

    fn finish(self) -> Vec<Finding> {
        self.by_object.into_iter().map(|((object, reason), points)| Finding { object, reason, points }).collect()
    }
}

/// Lists what is to be verified. What a listing refuses are findings already.
async fn select(
    catalog: &crate::point::Catalog<'_>,
    options: &Options,
    findings: &mut Findings,
) -> Result<Vec<Found>, Failure> {
    let mut listing = Listing::default();
    if options.apps.is_empty() {
        listing = catalog.list(None).await?;
    } else {
        for app in &options.apps {
            let of_app = catalog.list(Some(app)).await?;
            listing.points.extend(of_app.points);
            listing.refused.extend(of_app.refused);
        }
        if !options.points.is_empty() {
            let all = catalog.list(None).await?;
            let more = all.points.into_iter().filter(|f| !options.apps.contains(&f.root.app));
            listing.points.extend(more.filter(|f| options.points.contains(&f.root.id())));
        }
    }
    let wanted = |id: &PointId| options.points.is_empty() || options.points.contains(id);
    for refused in listing.refused {
        let id = refused.key.parse_point().map(|(_, id)| id);
        if id.is_none_or(|id| wanted(&id)) {
            findings.add(format!("{} version {}", refused.key, refused.version), refused.reason, id);
        }
    }
    let apps = &options.apps;
    listing.points.retain(|f| wanted(&f.root.id()) || apps.contains(&f.root.app));
    for found in &listing.points {
        let id = found.root.id();
        if found.hidden {
            findings.add(found.root.key(), "hidden by a delete marker; the locked version is still there", [id]);
        }
        check_object_lock(catalog.store, &found.root.key(), Some(&found.version), found.root.lock_until, id, findings)
            .await?;
    }
    for id in &options.points {
        if !listing.points.iter().any(|f| f.root.id() == *id) {
            findings.add(format!("points/…/{}", id.key_part()), "the restore point is not there", [*id]);
        }
    }
    Ok(listing.points)
}

async fn check_object_lock(
    store: &dyn Store,
    key: &Key,
    version: Option<&crate::store::Version>,
    until: Option<Moment>,
    point: PointId,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let Some(until) = until else { return Ok(()) };
    match store.head(key, version).await {
        Ok(head) if head.lock.is_some_and(|l| l.until >= until) => {}
        Ok(head) => findings.add(key, lock_reason(head.lock, until), [point]),
        Err(GetError::NotFound(_)) => findings.add(key, "missing", [point]),
        Err(GetError::Failed(f)) => return Err(f),
    }
    Ok(())
}

fn lock_reason(found: Option<Lock>, until: Moment) -> String {
    match found {
        None => format!("not locked; it must be until {until}"),
        Some(l) => format!("locked only until {}; it must be until {until}", l.until),
    }
}

fn missing_lock(found: Option<Lock>, needed: &Needed) -> Option<String> {
    let until = needed.lock_until?;
    let wanted = Lock { firmness: needed.firm.unwrap_or(Firmness::Governance), until };
    (!locked_enough(found, Some(wanted))).then(|| match found {
        Some(f) if f.until >= until => {
            format!("its {:?} lock can be bypassed; the repository promises more", f.firmness)
        }
        _ => lock_reason(found, until),
    })
}

/// Verifies with the secret.
///
/// # Errors
/// [`Failure`] when the store can't be asked: then nothing is known.
pub async fn verify(repository: &Repository, cache: &IndexCache, options: &Options) -> Result<Report, Failure> {
    let mut findings = Findings::default();
    let mut report = Report::default();
    let catalog = repository.catalog();
    let mut points: Vec<OpenPoint> = Vec::new();
    let mut needed: BTreeMap<PackId, Needed> = BTreeMap::new();
    for found in select(&catalog, options, &mut findings).await? {
        if found.root.tombstone {
            report.tombstones += 1;
            continue;
        }
        report.points += 1;
        let (id, key) = (found.root.id(), found.root.key());
        let lock_until = found.root.lock_until;
        match repository.open_point(found).await {
            Ok(point) => {
                let placement = Key::placement(&id, point.placement.number);
                check_object_lock(&*repository.store, &placement, None, lock_until, id, &mut findings).await?;
                need(&mut needed, &point, repository.config.lock.mode.firmness());
                points.push(point);
            }
            Err(PointError::Placement(PlaceError::Store(f))) => return Err(f),
            Err(PointError::Placement(PlaceError::Refused { key, reason })) => findings.add(key, chain(&reason), [id]),
            Err(e @ PointError::Placement(PlaceError::Missing(_))) => {
                findings.add(Key::placements(&id), chain(&e), [id]);
            }
            Err(e) => findings.add(key, chain(&e), [id]),
        }
    }
    check_config(repository, &points, &mut findings).await?;
    let chosen = packs::choose(&needed, options.data_percent);
    let expected = maps::check(repository, &points, &chosen, &mut report, &mut findings).await?;
    packs::check(repository, cache, &needed, expected, (&chosen, options.parallel), &mut report, &mut findings).await?;
    for id in &findings.damaged {
        if let Some(needed) = needed.get(id) {
            report.damaged.entry(needed.app).or_default().insert(*id);
        }
    }
    report.findings = findings.finish();
    Ok(report)
}

/// `repository.json` must stay as long as any point: without it nothing opens.
async fn check_config(repository: &Repository, points: &[OpenPoint], findings: &mut Findings) -> Result<(), Failure> {
    let longest = points.iter().max_by_key(|p| p.found.root.lock_until);
    let Some(point) = longest else { return Ok(()) };
    let (version, root) = (Some(&repository.config_version), &point.found.root);
    check_object_lock(&*repository.store, &Key::config(), version, root.lock_until, root.id(), findings).await
}

fn need(needed: &mut BTreeMap<PackId, Needed>, point: &OpenPoint, firm: Option<Firmness>) {
    let (id, lock_until) = (point.found.root.id(), point.found.root.lock_until);
    for info in &point.placement.packs {
        let entry = needed.entry(info.id).or_insert_with(|| Needed {
            info: info.clone(),
            lock_until: None,
            firm,
            points: BTreeSet::new(),
            app: point.found.root.app,
        });
        entry.lock_until = entry.lock_until.max(lock_until);
        entry.points.insert(id);
    }
}

fn metadata_finding(e: MetadataError, place: &str, point: PointId, findings: &mut Findings) -> Result<(), Failure> {
    match e {
        MetadataError::Store(f) => Err(f),
        e => {
            findings.damaged.extend(e.pack());
            let object = e.object().map_or_else(|| place.to_owned(), |k| k.to_string());
            findings.add(object, format!("{e} (map of {place})"), [point]);
            Ok(())
        }
    }
}
