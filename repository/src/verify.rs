//! Proofs that restore points are whole.
//!
//! There are three depths. The *structure*: every root, placement, map, directory and index entry agrees, and every pack is there
//! and locked long enough. The *data*: all packs or a share of them are read, and every chunk is opened and compared with the
//! digests of its pages in the maps. With the *public key alone*: every stored byte is read and compared with what the placements
//! sign. A finding names the object and each restore point that it concerns. If the store can't be asked, that is an error, never
//! a finding.

mod keys;
mod locks;
mod maps;
mod needed;
mod packs;
mod pages;
mod public;

pub use public::{PublicError, verify_public};

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{AppHash, PackId, PointId};
use crate::index::IndexCache;
use crate::metadata::MetadataError;
use crate::point::Root;
use crate::point::catalog::{Found, Listing, PlaceError, Placed, chain};
use crate::repository::{NoDomain, OpenPoint, PointError, Repository};
use crate::store::{Failure, Firmness, Key, Store, Trouble, Version};
use locks::{Promise, Used};
use needed::NeededPacks;

/// What to verify.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only these applications. Empty: all, unless points are named.
    pub apps: Vec<AppHash>,
    /// Only these points.
    pub points: Vec<PointId>,
    /// Read and open this share of the packs, in percent (0: none).
    pub data_percent: u8,
    /// How many packs are read at once.
    pub parallel: usize,
}

/// A defect of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The object's key.
    pub object: String,
    /// What is wrong with it.
    pub reason: String,
    /// The points that it concerns.
    pub points: BTreeSet<PointId>,
}

/// What was checked, and what was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Restore points.
    pub points: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Packs about which the store was asked.
    pub packs: u64,
    /// Map chunks that were read.
    pub map_chunks: u64,
    /// References from maps to chunks that were compared with directories.
    pub extents: u64,
    /// Index entries that were compared with directories.
    pub index_entries: u64,
    /// Packs that were read whole.
    pub packs_read: u64,
    /// Bytes that were read and proved correct.
    pub bytes_read: u64,
    /// Chunks that were opened.
    pub chunks_opened: u64,
    /// Extents whose digests of pages were compared with the bytes.
    pub extents_compared: u64,
    /// Packs that are gone or hold something else than they must, by application: nothing new should refer to them.
    pub damaged: BTreeMap<AppHash, BTreeSet<PackId>>,
    /// Findings, sorted, each object and reason once.
    pub findings: Vec<Finding>,
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

/// Lists what is to be verified. Objects that a listing refuses are findings already.
async fn select(
    catalog: &crate::point::Catalog<'_>,
    firm: Option<Firmness>,
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
        let key = found.root.key();
        let used = Used { key: &key, version: &found.version, hidden: found.hidden };
        let promise = Promise { until: found.root.lock_until, firm };
        locks::check(catalog.store, used, promise, found.root.id(), findings).await?;
    }
    for id in &options.points {
        if !listing.points.iter().any(|f| f.root.id() == *id) {
            findings.add(format!("points/…/{}", id.key_part()), "the restore point is not there", [*id]);
        }
    }
    Ok(listing.points)
}

/// Verifies with the secret.
///
/// # Errors
/// [`Failure`] when the store can't be asked: then nothing is known.
pub async fn verify(repository: &Repository, cache: &IndexCache, options: &Options) -> Result<Report, Failure> {
    let mut findings = Findings::default();
    let mut report = Report::default();
    let catalog = repository.catalog();
    let firm = repository.config.lock.mode.firmness();
    let mut points: Vec<OpenPoint> = Vec::new();
    let mut needed = NeededPacks::default();
    for found in select(&catalog, firm, options, &mut findings).await? {
        if found.root.tombstone {
            report.tombstones += 1;
            continue;
        }
        report.points += 1;
        let (root, key) = (found.root, found.root.key());
        match repository.open_point(found).await {
            Ok(point) => {
                let placed = &point.placement;
                check_placement(&*repository.store, &root, placed, firm, &mut findings).await?;
                needed.add(&root, placed, firm, &mut findings);
                points.push(point);
            }
            Err(PointError::Placement(e)) => unplaced(e, root.id(), &mut findings)?,
            Err(PointError::Keys { source, .. }) => without_keys(source, root.id(), &mut findings)?,
            Err(e) => findings.add(key, chain(&e), [root.id()]),
        }
    }
    let roots: Vec<&Root> = points.iter().map(|p| &p.found.root).collect();
    check_config(&*repository.store, &repository.config_version, firm, &roots, &mut findings).await?;
    keys::check(&*repository.store, &repository.config, &roots, &mut findings).await?;
    let chosen = packs::choose(&needed, options.data_percent);
    let expected = maps::check(repository, &points, &chosen, &mut report, &mut findings).await?;
    packs::check(repository, cache, &needed, expected, (&chosen, options.parallel), &mut report, &mut findings).await?;
    for id in &findings.damaged {
        for needed in needed.of(id) {
            report.damaged.entry(needed.domain.app).or_default().insert(*id);
        }
    }
    report.findings = findings.finish();
    Ok(report)
}

/// A point without usable keys is a finding, unless nothing could be asked.
fn without_keys(e: NoDomain, point: PointId, findings: &mut Findings) -> Result<(), Failure> {
    match e {
        NoDomain::Store(f) => return Err(f),
        NoDomain::Refused { key, reason } => findings.add(key, chain(&reason), [point]),
        NoDomain::Missing(key) => {
            findings.add(key, "missing: without it nothing opens the points of the application", [point])
        }
    }
    Ok(())
}

fn unplaced(e: PlaceError, point: PointId, findings: &mut Findings) -> Result<(), Failure> {
    match e {
        PlaceError::Store(f) if f.trouble != Trouble::Foreign => return Err(f),
        PlaceError::Store(f) => findings.add(&f.key, chain(&f), [point]),
        PlaceError::Refused { key, reason } => findings.add(key, chain(&reason), [point]),
        PlaceError::Missing(_) => findings.add(Key::placements(&point), chain(&e), [point]),
    }
    Ok(())
}

async fn check_placement(
    store: &dyn Store,
    root: &Root,
    placed: &Placed,
    firm: Option<Firmness>,
    findings: &mut Findings,
) -> Result<(), Failure> {
    let key = Key::placement(&root.id(), placed.number);
    let used = Used { key: &key, version: &placed.version, hidden: placed.hidden };
    locks::check(store, used, Promise { until: root.lock_until, firm }, root.id(), findings).await
}

/// `repository.json` must stay for as long as any point: nothing opens without it.
async fn check_config(
    store: &dyn Store,
    version: &Version,
    firm: Option<Firmness>,
    roots: &[&Root],
    findings: &mut Findings,
) -> Result<(), Failure> {
    let Some(longest) = roots.iter().max_by_key(|r| r.lock_until) else { return Ok(()) };
    let used = Used { key: &Key::config(), version, hidden: false };
    locks::check(store, used, Promise { until: longest.lock_until, firm }, longest.id(), findings).await
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
