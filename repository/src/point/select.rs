//! Which point a person means: by id, as the newest of an application, or by time.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::catalog::{FindError, Found, Listing, Refused};
use super::newer::Ordered;
use crate::clock::Moment;
use crate::id::{AppId, AppName, ClusterId, Namespace, PointId};
use crate::repository::{NoDomain, PointError, Repository};
use crate::store::{Failure, Key};

/// Which point a person means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// That very point.
    Point(PointId),
    /// An application. Where one point is meant, it is the newest.
    Application(AppId),
    /// The newest of an application.
    Latest(AppId),
    /// The last of an application at or before a time.
    At(AppId, Moment),
}

/// Text that is not a selector.
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
        let app = AppId::local(app.parse::<AppName>().map_err(|_| bad())?);
        match time {
            None => Ok(Self::Application(app)),
            Some("latest") => Ok(Self::Latest(app)),
            // A time without a fraction means the whole second, since the ids show no fraction either.
            Some(time) => {
                let rest = if time.contains(['.', ',']) { Duration::ZERO } else { Duration::from_millis(999) };
                Ok(Self::At(app, Moment::parse(time).map_err(|_| bad())?.plus(rest)))
            }
        }
    }
}

impl Selector {
    /// The same selector for an application of this cluster and namespace.
    #[must_use]
    pub fn within(self, cluster: ClusterId, namespace: Option<Namespace>) -> Self {
        let of = |app: AppId| AppId { cluster, namespace, name: app.name };
        match self {
            Self::Point(id) => Self::Point(id),
            Self::Application(app) => Self::Application(of(app)),
            Self::Latest(app) => Self::Latest(of(app)),
            Self::At(app, moment) => Self::At(of(app), moment),
        }
    }

    /// The application that it names.
    pub fn application(&self) -> Option<&AppId> {
        match self {
            Self::Point(_) => None,
            Self::Application(app) | Self::Latest(app) | Self::At(app, _) => Some(app),
        }
    }

    /// Whether the newest point of an application is meant.
    pub fn is_newest(&self) -> bool {
        matches!(self, Self::Application(_) | Self::Latest(_))
    }
}

impl Repository {
    /// Finds the point that is meant.
    ///
    /// # Errors
    /// [`FindError`].
    pub async fn select(&self, selector: &Selector) -> Result<Found, FindError> {
        let catalog = self.catalog();
        let (app, at) = match selector {
            Selector::Point(id) => return catalog.point(id).await,
            Selector::Application(app) | Selector::Latest(app) => (app, None),
            Selector::At(app, at) => (app, Some(*at)),
        };
        let Listing { points, mut refused } = catalog.list(Some(&self.ring.app_hash(app))).await?;
        let meant = |moment: Moment| at.is_none_or(|at| moment <= at);
        // An object beside an authentic root does not hide the root.
        refused.retain(|r| !points.iter().any(|f| Key::point(&f.root.app, &f.root.id()) == r.key));
        let ordered = self.order(points).await?;
        let last = ordered.last(|f| meant(f.root.moment));
        if let Some((last, other)) = last.and_then(|last| Some((last, ordered.doubt(last)?))) {
            tracing::warn!(taken = %last.root.id(), %other, "neither follows from the other, and they are dated within minutes: \
                which is newer is told by clocks alone");
        }
        let last = last.cloned();
        // A newer point that can't be read may be the wanted one. Only a person may choose an older one in its place.
        let newer = refused.into_iter().rev().find(|r| {
            let moment = r.key.parse_point().map(|(_, id)| id.second());
            moment.is_some_and(|m| meant(m) && last.as_ref().is_none_or(|f| m.seconds() >= f.root.moment.seconds()))
        });
        match (newer, last) {
            (Some(Refused { key, reason, .. }), _) => Err(FindError::NewestRefused { key, reason }),
            (None, Some(last)) => Ok(last),
            (None, None) if ordered.points().is_empty() => match self.namesakes(&app.name).await? {
                others if others.is_empty() => Err(FindError::None),
                others => Err(FindError::Namesakes(others)),
            },
            (None, None) => Err(FindError::None),
        }
    }

    /// Orders points. Their sealed parts tell which point follows from which.
    ///
    /// # Errors
    /// [`Failure`] when the store can't be asked for the keys of an application.
    pub async fn order(&self, points: Vec<Found>) -> Result<Ordered, Failure> {
        let mut parents = HashMap::new();
        for found in points.iter().filter(|f| !f.root.tombstone) {
            match self.body(found).await {
                Ok(body) => parents.extend(body.parent.map(|parent| (found.root.id(), parent))),
                Err(PointError::Keys { source: NoDomain::Store(f), .. }) => return Err(f),
                // A point that can't be opened is ordered by its date alone.
                Err(_) => {}
            }
        }
        Ok(Ordered::new(points, parents))
    }

    /// Applications with this name, of any cluster and namespace, that have points.
    async fn namesakes(&self, name: &AppName) -> Result<Vec<AppId>, Failure> {
        let mut found = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for point in self.catalog().list(None).await?.points.iter().filter(|f| !f.root.tombstone) {
            if seen.insert(point.root.app)
                && let Ok(body) = self.body(point).await
                && body.application.name == *name
            {
                found.insert(body.application);
            }
        }
        Ok(found.into_iter().collect())
    }
}
