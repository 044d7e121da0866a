//! Several objects at once: one look at a run asks for many, and waits for each no longer than for one.

use futures::{StreamExt, TryStreamExt};
use kube::Api;
use serde::de::DeserializeOwned;

/// Requests that are under way at once.
const AT_ONCE: usize = 16;

/// The objects that are there, of these, in their order: each under its key, by its name.
///
/// # Errors
/// When the API server can't be asked.
pub(crate) async fn get_each<K>(api: &Api<K>, wanted: Vec<(String, String)>) -> Result<Vec<(String, K)>, kube::Error>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let get = |(key, name): (String, String)| async move { Ok(api.get_opt(&name).await?.map(|found| (key, found))) };
    let found = futures::stream::iter(wanted).map(get).buffered(AT_ONCE);
    found.try_filter_map(|found| std::future::ready(Ok(found))).try_collect().await
}
