//! What Kubernetes says of objects that do not get on. Why a volume is not made or not attached stands in events alone.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ListParams, ObjectMeta};
use kube::{Api, Client};

use crate::steps::{now, since};

/// A warning that lasts so long is why it fails. Controllers try again for as long, with longer and longer pauses.
const WARNED_MAX: Duration = Duration::from_secs(600);

/// An older warning is over.
const RECENT: Duration = Duration::from_secs(300);

/// The last warning of each object, by the object's UID.
pub type Warnings = BTreeMap<String, String>;

fn moment(event: &Event) -> Timestamp {
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    last.or_else(|| event.event_time.as_ref().map(|time| time.0)).unwrap_or_default()
}

/// The recent warnings of a namespace.
///
/// # Errors
/// When the API server can't be asked.
pub(crate) async fn warnings(client: &Client, namespace: &str) -> Result<Warnings, kube::Error> {
    let of = ListParams::default().fields("type=Warning");
    let mut events = Api::<Event>::namespaced(client.clone(), namespace).list(&of).await?.items;
    events.retain(|event| since(&Time(moment(event)), now()) < RECENT);
    events.sort_by_key(moment);
    let of_object = |event: Event| Some((event.involved_object.uid?, event.message?));
    Ok(events.into_iter().filter_map(of_object).collect())
}

/// What is wrong with an object of this age: `Err`, if that lasts too long already.
pub(crate) fn warned(object: &ObjectMeta, warnings: &Warnings, age: Duration) -> Result<Option<String>, String> {
    let warning = object.uid.as_ref().and_then(|uid| warnings.get(uid));
    let Some(warning) = warning.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")) else {
        return Ok(None);
    };
    if age > WARNED_MAX { Err(warning) } else { Ok(Some(warning)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_said_at_once_and_ends_the_wait_when_it_lasts() {
        let of = |uid: &str| ObjectMeta { uid: Some(uid.into()), ..ObjectMeta::default() };
        let all: Warnings = [("a".to_owned(), "no\n  room".to_owned())].into();
        assert_eq!(warned(&of("a"), &all, WARNED_MAX), Ok(Some("no room".into())));
        assert_eq!(warned(&of("a"), &all, WARNED_MAX + Duration::from_secs(1)), Err("no room".into()));
        assert_eq!(warned(&of("b"), &all, WARNED_MAX * 2), Ok(None));
    }
}
