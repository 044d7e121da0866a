//! Which of two points is newer. The chain of parents decides first; only then do the clocks.
//!
//! Each root names, in its sealed part, the parent that predicted it: the parent is older. If a clock a few minutes ahead dated a
//! point, it still counts as older than the points that follow from it, whatever their clocks said. If two points do not follow
//! from each other and their dates differ by no more than clocks may, their order is in doubt.

use std::collections::{HashMap, HashSet};

use super::catalog::Found;
use crate::clock::{Moment, SKEW_MAX};
use crate::id::PointId;

/// Points of one or more applications, oldest first.
#[derive(Debug, Default)]
pub struct Ordered {
    points: Vec<Found>,
    parents: HashMap<PointId, PointId>,
}

impl Ordered {
    /// Orders points. `parents` says which point follows from which, as far as that is known. A point without a known parent is
    /// ordered by its date alone.
    pub fn new(mut points: Vec<Found>, parents: HashMap<PointId, PointId>) -> Self {
        let dates: HashMap<PointId, Moment> = points.iter().map(|f| (f.root.id(), f.root.moment)).collect();
        let mut ranks: HashMap<PointId, (Moment, u64)> = HashMap::new();
        for id in dates.keys() {
            rank(*id, &dates, &parents, &mut ranks);
        }
        points.sort_by_key(|f| {
            let id = f.root.id();
            (ranks.get(&id).copied().unwrap_or((f.root.moment, 0)), f.root.moment, f.root.run)
        });
        Self { points, parents }
    }

    /// The points.
    pub fn points(&self) -> &[Found] {
        &self.points
    }

    /// The newest point that is no tombstone and that `wanted` accepts.
    pub fn last(&self, wanted: impl Fn(&Found) -> bool) -> Option<&Found> {
        self.points.iter().filter(|f| !f.root.tombstone).rfind(|f| wanted(f))
    }

    /// A point of the same application that may be newer than `last`: only the clocks say that it is not.
    pub fn doubt(&self, last: &Found) -> Option<PointId> {
        let mut before = HashSet::from([last.root.id()]);
        let mut at = last.root.id();
        while let Some(parent) = self.parents.get(&at)
            && before.insert(*parent)
        {
            at = *parent;
        }
        let near = |f: &Found| {
            let (a, b) = (f.root.moment, last.root.moment);
            a.since(b) <= SKEW_MAX && b.since(a) <= SKEW_MAX
        };
        let other = |f: &&Found| !f.root.tombstone && f.root.app == last.root.app && !before.contains(&f.root.id());
        let found = self.points.iter().filter(other).find(|f| near(f) && !self.follows(&f.root.id(), &last.root.id()));
        found.map(|f| f.root.id())
    }

    fn follows(&self, later: &PointId, earlier: &PointId) -> bool {
        let mut seen = HashSet::new();
        let mut at = *later;
        while let Some(parent) = self.parents.get(&at)
            && seen.insert(at)
        {
            if parent == earlier {
                return true;
            }
            at = *parent;
        }
        false
    }
}

/// A point's own date, or its parent's rank plus one step, whichever is later.
fn rank(
    id: PointId,
    dates: &HashMap<PointId, Moment>,
    parents: &HashMap<PointId, PointId>,
    ranks: &mut HashMap<PointId, (Moment, u64)>,
) {
    // Goes back from the point to one that has a rank or has no parent here, then forward again.
    let (mut path, mut on_path) = (Vec::new(), HashSet::new());
    let mut at = Some(id);
    let mut before = None;
    while let Some(point) = at {
        if let Some(rank) = ranks.get(&point) {
            before = Some(*rank);
            break;
        }
        // Signed points never form a circle.
        if !dates.contains_key(&point) || !on_path.insert(point) {
            break;
        }
        path.push(point);
        at = parents.get(&point).copied();
    }
    for point in path.into_iter().rev() {
        let own = dates.get(&point).map_or((Moment::from_millis(i64::MIN), 0), |date| (*date, 0));
        let rank = before.map_or(own, |(date, step)| own.max((date, step + 1)));
        ranks.insert(point, rank);
        before = Some(rank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{AppHash, RepositoryId, RunId};
    use crate::point::Root;
    use crate::point::root::Class;
    use crate::store::Version;

    fn found(run: u8, minute: i64) -> Found {
        let root = Root {
            tombstone: false,
            repository: RepositoryId::from_bytes([1; 16]),
            app: AppHash::from_bytes([2; 16]),
            domain: 0,
            class: Class::None,
            run: RunId::from_bytes([run; 8]),
            moment: Moment::from_millis(1_800_000_000_000 + minute * 60_000),
            lock_until: None,
        };
        Found { root, version: Version(String::new()), bytes: bytes::Bytes::new(), hidden: false }
    }

    fn ordered(points: &[(u8, i64)], parents: &[(u8, u8)]) -> Ordered {
        let all: Vec<Found> = points.iter().map(|&(run, minute)| found(run, minute)).collect();
        let id = |run: u8| all.iter().find(|f| f.root.run == RunId::from_bytes([run; 8])).unwrap().root.id();
        let parents = parents.iter().map(|&(child, parent)| (id(child), id(parent))).collect();
        Ordered::new(all.clone(), parents)
    }

    fn runs(o: &Ordered) -> Vec<u8> {
        o.points().iter().map(|f| f.root.run.as_bytes()[0]).collect()
    }

    #[test]
    fn what_follows_is_newer_whatever_the_clocks_said() {
        // Point 1 was dated four minutes ahead. Points 2 and 3 follow from it, one after the other. Point 4 is later by every
        // clock.
        let o = ordered(&[(1, 4), (2, 1), (3, 2), (4, 10)], &[(2, 1), (3, 2), (4, 3)]);
        assert_eq!(runs(&o), [1, 2, 3, 4]);
        let o = ordered(&[(1, 4), (2, 1), (3, 2)], &[(2, 1), (3, 2)]);
        let last = o.last(|_| true).unwrap();
        assert_eq!(last.root.run.as_bytes()[0], 3);
        assert_eq!(o.doubt(last), None);
        // Without parents the date decides.
        assert_eq!(runs(&ordered(&[(1, 4), (2, 1), (3, 2)], &[])), [2, 3, 1]);
        // The search ends at a parent that is not here, or at a circle.
        assert_eq!(runs(&ordered(&[(1, 1), (2, 2)], &[(1, 2), (2, 1)])).len(), 2);
    }

    #[test]
    fn what_only_clocks_tell_apart_is_in_doubt() {
        let o = ordered(&[(1, 0), (2, 10), (3, 12)], &[(2, 1), (3, 1)]);
        let last = o.last(|_| true).unwrap();
        assert_eq!((last.root.run.as_bytes()[0], o.doubt(last)), (3, Some(found(2, 10).root.id())));
        // The dates are far enough apart, so the clocks decide.
        let o = ordered(&[(1, 0), (2, 10), (3, 20)], &[(2, 1), (3, 1)]);
        assert_eq!(o.doubt(o.last(|_| true).unwrap()), None);
    }
}
