use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::directory::Directory;
use super::faulty::{Fault, Faulty};
use super::grant::{PutTerms, Redeem, Redeemer};
use super::memory::Memory;
use super::retry::{Patience, Retrying};
use super::throttle::Throttle;
use super::*;

#[tokio::test]
async fn memory_conforms() {
    let memory = Arc::new(Memory::new());
    let store: SharedStore = memory.clone();
    let redeem: Arc<dyn Redeem> = memory;
    conformance::run(&store, &redeem).await;
}

#[tokio::test]
async fn directory_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let store = Directory::new(folder.path(), Throttle::none());
    conformance::run(&store, &Redeemer::new(None, Throttle::none()).unwrap()).await;
}

#[tokio::test]
async fn decorated_stores_conform() {
    let folder = tempfile::tempdir().unwrap();
    let store = Faulty::crash_points(Directory::new(folder.path(), Throttle::none()));
    let redeem = Faulty::crash_points(Redeemer::new(None, Throttle::none()).unwrap());
    conformance::run(&Retrying::new(store, Patience::TEST), &Retrying::new(redeem, Patience::TEST)).await;
}

/// Every third call fails, before or after it happened: whoever retries and reads back sees none of it.
#[tokio::test(start_paused = true)]
async fn retries_hide_every_passing_fault() {
    for fault in [
        Fault::Before(Trouble::Unreachable),
        Fault::Before(Trouble::Busy),
        Fault::After(Trouble::Unreachable),
        Fault::After(Trouble::Busy),
        Fault::Stall(Patience::TEST.call_limit * 2),
    ] {
        let memory = Arc::new(Memory::new());
        let script = Arc::new(move |n: u64, _: Operation, _: &str| n.is_multiple_of(3).then_some(fault));
        let store = Faulty::new(memory.clone() as SharedStore, script);
        let store = Retrying::new(store, Patience::TEST);
        for i in 0..40 {
            let (key, body) = (Key::new(format!("packs/{i}")), Bytes::from(vec![i; 100]));
            store.create(&key, body.clone(), None).await.unwrap();
            assert!(matches!(
                store.create(&key, Bytes::from_static(b"other"), None).await,
                Err(CreateError::Exists(_))
            ));
            assert_eq!(store.get(&key, None, None).await.unwrap(), body);
            assert_eq!(store.head(&key, None).await.unwrap().length, 100);
        }
        assert_eq!(store.versions("packs/").await.unwrap().len(), 40, "{fault:?} left several versions");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_that_stays_is_told_as_what_it_is() {
    for (fault, trouble) in [
        (Fault::Before(Trouble::Unreachable), Trouble::Unreachable),
        (Fault::Before(Trouble::Denied), Trouble::Denied),
        (Fault::Before(Trouble::Full), Trouble::Full),
        (Fault::Before(Trouble::Skewed), Trouble::Skewed),
    ] {
        let calls = Arc::new(AtomicU64::new(0));
        let count = calls.clone();
        let script = Arc::new(move |_: u64, _: Operation, _: &str| {
            count.fetch_add(1, Ordering::SeqCst);
            Some(fault)
        });
        let store = Retrying::new(Faulty::new(Arc::new(Memory::new()) as SharedStore, script), Patience::TEST);
        let error = store.get(&Key::config(), None, None).await.unwrap_err();
        let GetError::Failed(failure) = error else { panic!("not found is not unreachable") };
        assert_eq!(failure.trouble, trouble);
        let wanted = if failure.transient() { u64::from(Patience::TEST.attempts) } else { 1 };
        assert_eq!(calls.load(Ordering::SeqCst), wanted, "{trouble}");
    }
}

/// A PUT that answers success and stores nothing is noticed by the seal, which asks the store.
#[tokio::test]
async fn success_without_effect_never_counts() {
    let memory = Arc::new(Memory::new());
    let lie = Arc::new(|_: u64, operation: Operation, _: &str| (operation == Operation::Create).then_some(Fault::Lie));
    let store = Faulty::new(memory.clone() as SharedStore, Arc::new(|_, _, _| None));
    let redeem = Faulty::new(memory as Arc<dyn Redeem>, lie);
    let id = crate::id::PackId::random();
    let terms = PutTerms { key: Key::pack(&id), length: 5, crc32: crc32fast::hash(b"hello"), lock: None };
    let grant = store.grant_put(&terms).await.unwrap();
    redeem.put(&grant, Bytes::from_static(b"hello")).await.unwrap();
    let claim = crate::point::commit::Claim {
        id,
        kind: crate::pack::PackKind::Data,
        length: 5,
        digest: *blake3::hash(b"hello").as_bytes(),
        crc32: terms.crc32,
        key: crate::pack::SealedKey { encapsulated: [0; 32], ciphertext: [0; 48], slots: 0, directory_len: 16 },
    };
    let error = crate::point::commit::seal(&store, claim, None).await.unwrap_err();
    assert!(matches!(error, crate::point::commit::CommitError::Vanished(_)), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_and_an_unsound_key_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("packs"), b"a file where a folder must be").unwrap();
    let store = Directory::new(folder.path(), Throttle::none());
    assert!(store.create(&Key::new("packs/a"), Bytes::new(), None).await.is_err());
    assert!(store.create(&Key::new("../outside"), Bytes::new(), None).await.is_err());
}
