//! What every store must do. The suite runs on memory, on a directory, through the decorators, and on a real S3 server.

use std::time::Duration;

use bytes::Bytes;

use super::grant::{PutTerms, Redeem};
use super::{CreateError, DeleteError, Firmness, GetError, Key, Lock, Store, Trouble, list};
use crate::clock::{Moment, entropy};

/// Runs the whole suite under fresh keys. `redeemer` uses the grants of this store.
///
/// # Panics
/// At the first result that is not as it must be.
#[expect(clippy::panic, clippy::unwrap_used, reason = "a test suite")]
pub async fn run(store: &dyn Store, redeemer: &dyn Redeem) {
    let base = format!("packs/{}", hex::encode(entropy::<4>()));
    let key = |name: &str| Key::new(format!("{base}/{name}"));

    // Create, read, head.
    let a = key("a");
    let body = Bytes::from((0..100_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    assert!(matches!(store.get(&a, None, None).await, Err(GetError::NotFound(_))));
    assert!(matches!(store.head(&a, None).await, Err(GetError::NotFound(_))));
    let version = store.create(&a, body.clone(), None).await.unwrap();
    assert_eq!(store.get(&a, None, None).await.unwrap(), body);
    assert_eq!(store.get(&a, Some(&version), Some(10..20)).await.unwrap(), body.slice(10..20));
    let end = body.len() as u64;
    assert_eq!(store.get(&a, None, Some(end - 5..end + 100)).await.unwrap(), body.slice(body.len() - 5..));
    let head = store.head(&a, Some(&version)).await.unwrap();
    assert_eq!((head.length, &head.version, head.lock), (end, &version, None));
    assert!(head.crc32.is_none_or(|c| c == crc32fast::hash(&body)));
    let skew = head.modified.since(Moment::now()).max(Moment::now().since(head.modified));
    assert!(skew < Duration::from_secs(60), "{skew:?}");

    // Create-only, whatever the body is; also for an empty object.
    assert!(matches!(store.create(&a, body.clone(), None).await, Err(CreateError::Exists(_))));
    assert!(matches!(store.create(&a, Bytes::new(), None).await, Err(CreateError::Exists(_))));
    let empty = key("empty");
    store.create(&empty, Bytes::new(), None).await.unwrap();
    assert_eq!(store.get(&empty, None, None).await.unwrap().len(), 0);

    // If many create one key at once, one wins, and its body stays.
    let contested = key("contested");
    let tries =
        futures::future::join_all((0..8_u8).map(|i| store.create(&contested, Bytes::from(vec![i; 1000]), None))).await;
    let winners: Vec<usize> = (0..8).filter(|&i| tries[i].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{tries:?}");
    assert_eq!(store.get(&contested, None, None).await.unwrap()[0] as usize, winners[0]);

    // Listing: by prefix, sorted, nothing else.
    let listed: Vec<String> =
        list(store, &format!("{base}/")).await.unwrap().iter().map(|l| l.key.to_string()).collect();
    assert_eq!(listed, ["a", "contested", "empty"].map(|n| format!("{base}/{n}")));
    assert!(list(store, &format!("{base}/nothing")).await.unwrap().is_empty());

    // Deleting by version; a second delete is accepted.
    store.delete(&a, &version).await.unwrap();
    store.delete(&a, &version).await.unwrap();
    assert!(matches!(store.get(&a, None, None).await, Err(GetError::NotFound(_))));

    // Locks: set at creation, visible, kept, extended, never shortened.
    let locked = key("locked");
    let until = Moment::now().plus(Duration::from_secs(3600)).ceil(Duration::from_secs(1));
    let lock = Lock { firmness: Firmness::Compliance, until };
    let version = store.create(&locked, body.clone(), Some(lock)).await.unwrap();
    assert_eq!(store.head(&locked, Some(&version)).await.unwrap().lock, Some(lock));
    assert!(matches!(store.delete(&locked, &version).await, Err(DeleteError::Locked(_))));
    let longer = Lock { until: until.plus(Duration::from_secs(3600)), ..lock };
    store.extend_lock(&locked, &version, longer).await.unwrap();
    assert_eq!(store.head(&locked, None).await.unwrap().lock, Some(longer));
    assert!(store.extend_lock(&locked, &version, lock).await.is_err(), "a lock was shortened");
    assert_eq!(store.head(&locked, None).await.unwrap().lock, Some(longer));
    assert!(store.extend_lock(&key("none"), &version, longer).await.is_err());

    // Grants: to store one object, with its lock, once; and to read it.
    let granted = key("granted");
    let terms = PutTerms { key: granted.clone(), length: end, crc32: crc32fast::hash(&body), lock: Some(lock) };
    let grant = store.grant_put(&terms).await.unwrap();
    redeemer.put(&grant, body.clone()).await.unwrap();
    assert!(matches!(redeemer.put(&grant, body.clone()).await, Err(CreateError::Exists(_))));
    let head = store.head(&granted, None).await.unwrap();
    assert_eq!((head.length, head.lock), (end, Some(lock)));
    let grant = store.grant_get(&granted, &head.version).await.unwrap();
    // One buffer for all: whatever it held before, it holds the range afterwards.
    let mut out = vec![1; 5000];
    redeemer.get(&grant, 1000..2000, &mut out).await.unwrap();
    assert_eq!(out, body.slice(1000..2000));
    redeemer.get(&grant, end - 7..end, &mut out).await.unwrap();
    assert_eq!(out, body.slice(body.len() - 7..));
    redeemer.get(&grant, 0..end, &mut out).await.unwrap();
    assert_eq!(out, body);
    let beyond = redeemer.get(&grant, end - 7..end + 1, &mut out).await;
    let short = |e: &GetError| matches!(e, GetError::Failed(f) if f.trouble == Trouble::Short);
    assert!(beyond.as_ref().is_err_and(short), "a short body was taken for the whole range: {beyond:?}");
    // An object on this machine can be opened and read in parts, with the same answers.
    if let Some(object) = redeemer.open(&grant, 0..end).await.unwrap() {
        let mut part = vec![0; 1000];
        object.read(&mut part, 1000).unwrap();
        assert_eq!(part, body.slice(1000..2000));
        let beyond = object.read(&mut part, end - 999);
        assert!(beyond.as_ref().is_err_and(short), "a short part was taken for a whole one: {beyond:?}");
    }
    let missing = store.grant_get(&key("none"), &head.version).await;
    if let Ok(missing) = missing {
        let opened = redeemer.open(&missing, 0..10).await;
        assert!(matches!(opened, Ok(None) | Err(GetError::NotFound(_))), "opened an object that isn't there");
        match redeemer.get(&missing, 0..10, &mut out).await {
            Err(_) => {}
            Ok(_) => panic!("read an object that isn't there"),
        }
    }
}
