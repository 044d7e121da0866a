//! What placements say about packs. Several points may need one pack, and each restore relies on its own placement. So each
//! statement is checked, and two that differ are a finding.

use std::collections::{BTreeMap, BTreeSet};

use super::Findings;
use super::locks::Promise;
use crate::id::{DomainId, PackId, PointId};
use crate::index::PackInfo;
use crate::point::{Placement, Root};
use crate::store::{Firmness, Key};

/// A statement about a pack, and the points whose placements make it.
pub(super) struct Needed {
    pub(super) info: PackInfo,
    pub(super) promise: Promise,
    pub(super) points: BTreeSet<PointId>,
    pub(super) domain: DomainId,
}

/// All statements about all packs.
#[derive(Default)]
pub(super) struct NeededPacks {
    by_pack: BTreeMap<PackId, Vec<Needed>>,
}

/// What differs between two statements. Their lock may differ: it may have been another one when each was written.
fn differs(a: &PackInfo, b: &PackInfo) -> Option<&'static str> {
    let PackInfo { id: _, kind, length, digest, version, key, locked_until: _ } = a;
    let checks = [
        (*kind == b.kind, "its kind"),
        (*length == b.length, "its length"),
        (*digest == b.digest, "the digest of its bytes"),
        (*version == b.version, "its version"),
        (*key == b.key, "its sealed key"),
    ];
    checks.into_iter().find(|(same, _)| !same).map(|(_, what)| what)
}

impl NeededPacks {
    /// Adds what a point's placement says.
    pub(super) fn add(&mut self, root: &Root, placement: &Placement, firm: Option<Firmness>, findings: &mut Findings) {
        let id = root.id();
        for info in &placement.packs {
            let statements = self.by_pack.entry(info.id).or_default();
            for other in statements.iter() {
                if let Some(what) = differs(info, &other.info) {
                    let points = other.points.iter().copied().chain([id]);
                    findings.add(Key::pack(&info.id), format!("placements disagree about {what}"), points);
                }
            }
            match statements.iter_mut().find(|n| n.domain == root.domain() && differs(info, &n.info).is_none()) {
                Some(needed) => {
                    needed.promise.until = needed.promise.until.max(root.lock_until);
                    needed.points.insert(id);
                }
                None => statements.push(Needed {
                    info: info.clone(),
                    promise: Promise { until: root.lock_until, firm },
                    points: [id].into(),
                    domain: root.domain(),
                }),
            }
        }
    }

    /// The packs.
    pub(super) fn packs(&self) -> impl Iterator<Item = PackId> + '_ {
        self.by_pack.keys().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.by_pack.len()
    }

    pub(super) fn contains(&self, id: &PackId) -> bool {
        self.by_pack.contains_key(id)
    }

    /// What is said about one pack.
    pub(super) fn of(&self, id: &PackId) -> impl Iterator<Item = &Needed> {
        self.by_pack.get(id).into_iter().flatten()
    }

    /// Every statement.
    pub(super) fn all(&self) -> impl Iterator<Item = &Needed> {
        self.by_pack.values().flatten()
    }
}
