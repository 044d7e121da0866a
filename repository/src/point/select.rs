//! Which point a person means: by id, as the newest of an application, or by time.

use std::time::Duration;

use super::catalog::{Catalog, FindError, Found, Listing, Refused};
use super::order::Ordered;
use crate::clock::Moment;
use crate::id::{AppName, PointId};
use crate::keys::KeyRing;
use crate::store::Key;

/// Which point a person means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// That very point.
    Point(PointId),
    /// The newest of an application.
    Latest(AppName),
    /// The last of an application at or before a time.
    At(AppName, Moment),
}

/// Text that selects nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a restore point id, nor APP, APP@latest or APP@TIME (RFC 3339)")]
pub struct BadSelector(String);

impl std::str::FromStr for Selector {
    type Err = BadSelector;

    fn from_str(s: &str) -> Result<Self, BadSelector> {
        if let Ok(point) = s.parse() {
            return Ok(Self::Point(point));
        }
        let bad = || BadSelector(s.to_owned());
        let (app, time) = s.split_once('@').map_or((s, None), |(app, time)| (app, Some(time)));
        let app: AppName = app.parse().map_err(|_| bad())?;
        match time {
            None | Some("latest") => Ok(Self::Latest(app)),
            // A time without a fraction means all of its second: so do the ids, which show no more.
            Some(time) => {
                let rest = if time.contains(['.', ',']) { Duration::ZERO } else { Duration::from_millis(999) };
                Ok(Self::At(app, Moment::parse(time).map_err(|_| bad())?.plus(rest)))
            }
        }
    }
}

impl Catalog<'_> {
    /// The point that a selector means. `ring` hashes the application's name.
    ///
    /// # Errors
    /// [`FindError`].
    pub async fn select(&self, selector: &Selector, ring: &KeyRing) -> Result<Found, FindError> {
        let (app, at) = match selector {
            Selector::Point(id) => return self.point(id).await,
            Selector::Latest(app) => (app, None),
            Selector::At(app, at) => (app, Some(*at)),
        };
        let Listing { points, mut refused } = self.list(Some(&ring.app_hash(app))).await?;
        let meant = |moment: Moment| at.is_none_or(|at| moment <= at);
        // What stands beside an authentic root hides none.
        refused.retain(|r| !points.iter().any(|f| Key::point(&f.root.app, &f.root.id()) == r.key));
        let ordered = Ordered::new(points, ring);
        let last = ordered.last(|f| meant(f.root.moment));
        if let Some((last, other)) = last.and_then(|last| Some((last, ordered.doubt(last)?))) {
            tracing::warn!(taken = %last.root.id(), %other, "neither follows from the other, and they are dated within minutes: \
                which is newer is told by clocks alone");
        }
        let last = last.cloned();
        // A newer one that can't be read may be the one that is meant. An older one in its place is for people to choose.
        let newer = refused.into_iter().rev().find(|r| {
            let moment = r.key.parse_point().map(|(_, id)| id.second());
            moment.is_some_and(|m| meant(m) && last.as_ref().is_none_or(|f| m.seconds() >= f.root.moment.seconds()))
        });
        match (newer, last) {
            (Some(Refused { key, reason, .. }), _) => Err(FindError::NewestRefused { key, reason }),
            (None, last) => last.ok_or(FindError::None),
        }
    }
}
