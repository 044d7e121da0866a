use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::directory::Directory;
use super::faulty::{Fault, Faulty};
use super::grant::{PutTerms, Redeem};
use super::memory::Memory;
use super::redeem::Redeemer;
use super::retry::{Patience, Retrying};
use super::throttle::Throttle;
use super::*;

/// File grants are accepted only in a repository.
fn repository_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("repository.json"), "{}").unwrap();
    folder
}

#[tokio::test]
async fn memory_conforms() {
    let memory = Arc::new(Memory::new());
    let store: SharedStore = memory.clone();
    let redeem: Arc<dyn Redeem> = memory;
    conformance::run(&store, &redeem).await;
}

#[tokio::test]
async fn directory_conforms() {
    let folder = repository_folder();
    let store = Directory::new(folder.path(), Throttle::none());
    conformance::run(&store, &Redeemer::new(None, Throttle::none()).unwrap()).await;
}

#[tokio::test]
async fn decorated_stores_conform() {
    let folder = repository_folder();
    let store = Faulty::crash_points(Directory::new(folder.path(), Throttle::none()));
    let redeem = Faulty::crash_points(Redeemer::new(None, Throttle::none()).unwrap());
    conformance::run(&Retrying::new(store, Patience::TEST), &Retrying::new(redeem, Patience::TEST)).await;
}

/// Every third call fails, before or after it took effect. Callers that retry and read back do not notice.
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

/// A PUT that reports success and stores nothing is noticed by the seal, which asks the store.
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
    let claim = crate::point::commit::StoredReport {
        id,
        kind: crate::pack::PackKind::Data,
        length: 5,
        digest: *blake3::hash(b"hello").as_bytes(),
        crc32: terms.crc32,
        key: crate::pack::SealedKey { encapsulated: [0; 32], ciphertext: [0; 48], slots: 0, directory_len: 16 },
        version: None,
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

/// Rubbish in place of an object or a lock is named in an error. Nothing waits for it or obeys it.
#[tokio::test]
async fn what_is_no_plain_file_is_no_object() {
    let folder = repository_folder();
    let store = Directory::new(folder.path(), Throttle::none());
    let (pipe, circle, folder_key) = (Key::new("points/pipe"), Key::new("points/circle"), Key::new("points/folder"));
    std::fs::create_dir_all(folder.path().join("points/folder")).unwrap();
    nix::unistd::mkfifo(&folder.path().join("points/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("circle", folder.path().join("points/circle")).unwrap();
    for key in [&pipe, &circle, &folder_key] {
        let got = store.get(key, None, None).await;
        assert!(matches!(&got, Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign), "{key}: {got:?}");
    }
    // An object that is longer than any such object can be is not read.
    let sparse = Key::config();
    std::fs::File::create(folder.path().join("repository.json")).unwrap().set_len(1 << 40).unwrap();
    let got = read(&store, &sparse, None).await;
    assert!(matches!(&got, Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign), "{got:?}");
}

/// A sparse file costs nothing to plant: its beginning is checked before it is read.
#[tokio::test]
async fn what_begins_with_zeros_is_not_read() {
    let folder = repository_folder();
    let store = Directory::new(folder.path(), Throttle::none());
    std::fs::create_dir_all(folder.path().join("placements/a")).unwrap();
    std::fs::File::create(folder.path().join("placements/a/sparse")).unwrap().set_len(500 << 20).unwrap();
    std::fs::write(folder.path().join("placements/a/long"), vec![1; 5 << 20]).unwrap();
    let listed = store.versions("placements/").await.unwrap();
    let [long, sparse] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!(read_listed(&store, long).await.unwrap().len(), 5 << 20);
    let got = read_listed(&store, sparse).await;
    assert!(matches!(&got, Err(GetError::Failed(f)) if f.trouble == Trouble::Foreign), "{:?}", got.err());
}

#[tokio::test]
async fn rubbish_in_place_of_a_lock_locks_nothing_and_is_replaced() {
    let folder = repository_folder();
    let store = Directory::new(folder.path(), Throttle::none());
    let key = Key::new("packs/a");
    let version = store.create(&key, Bytes::from_static(b"body"), None).await.unwrap();
    let lock_file = folder.path().join(".locks/packs/a");
    std::fs::create_dir_all(folder.path().join(".locks/packs")).unwrap();
    for rubbish in ["compliance soon", "", &"x".repeat(1000)] {
        std::fs::write(&lock_file, rubbish).unwrap();
        assert_eq!(store.head(&key, Some(&version)).await.unwrap().lock, None);
        assert!(store.delete(&key, &version).await.is_err(), "deleted though its lock can't be read");
        let until = Moment::now().plus(std::time::Duration::from_secs(600));
        let lock = Lock { firmness: Firmness::Compliance, until };
        store.extend_lock(&key, &version, lock).await.unwrap();
        assert_eq!(store.lock_of(&key, &version).await.unwrap(), Some(lock));
    }
}

/// A folder in place of a lock, or a file in place of the lock's folder.
#[tokio::test]
async fn what_stands_in_the_way_of_a_lock_goes() {
    let folder = repository_folder();
    let store = Directory::new(folder.path(), Throttle::none());
    let until = Moment::now().plus(std::time::Duration::from_secs(600));
    let lock = Lock { firmness: Firmness::Compliance, until };
    let key = Key::new("packs/a");
    std::fs::create_dir_all(folder.path().join(".locks/packs/a/b")).unwrap();
    let version = store.create(&key, Bytes::from_static(b"body"), Some(lock)).await.unwrap();
    assert_eq!(store.lock_of(&key, &version).await.unwrap(), Some(lock));
    std::fs::remove_dir_all(folder.path().join(".locks/packs")).unwrap();
    std::fs::write(folder.path().join(".locks/packs"), "rubbish").unwrap();
    assert_eq!(store.lock_of(&key, &version).await.unwrap(), None);
    store.extend_lock(&key, &version, lock).await.unwrap();
    assert_eq!(store.lock_of(&key, &version).await.unwrap(), Some(lock));
}

#[tokio::test]
async fn wrapped_keys_are_their_owners_and_what_killed_processes_left_goes() {
    use std::os::unix::fs::PermissionsExt;
    let folder = repository_folder();
    let left = folder.path().join(".tmp/left");
    std::fs::create_dir(folder.path().join(".tmp")).unwrap();
    std::fs::write(&left, "x").unwrap();
    std::fs::write(folder.path().join(".tmp/young"), "x").unwrap();
    let long_ago = std::time::UNIX_EPOCH;
    std::fs::File::options().write(true).open(&left).unwrap().set_modified(long_ago).unwrap();
    let store = Directory::new(folder.path(), Throttle::none());
    for (key, mode) in [("keys/a", 0o600), ("packs/a", 0o644)] {
        store.create(&Key::new(key), Bytes::from_static(b"body"), None).await.unwrap();
        let found = std::fs::metadata(folder.path().join(key)).unwrap().permissions().mode();
        assert_eq!(found & 0o777 & mode, mode);
        assert!(mode == 0o644 || found & 0o077 == 0, "{found:o}");
    }
    assert!(!left.exists() && folder.path().join(".tmp/young").exists());
}

/// Two callers extend a lock at once: the later end stays, whichever caller is last.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_lock_grows_whoever_comes_last() {
    let folder = repository_folder();
    let store = Arc::new(Directory::new(folder.path(), Throttle::none()));
    let now = Moment::now();
    for round in 0..20_u64 {
        let key = Key::new(format!("packs/{round}"));
        let version = store.create(&key, Bytes::from_static(b"body"), None).await.unwrap();
        let lock = move |hours: u64| Lock {
            firmness: Firmness::Governance,
            until: now.plus(std::time::Duration::from_secs(3600 * hours)),
        };
        let extend = |hours: u64| {
            let (store, key, version) = (store.clone(), key.clone(), version.clone());
            // A caller that finds a later end may report it.
            tokio::spawn(async move { drop(store.extend_lock(&key, &version, lock(hours)).await) })
        };
        futures::future::join_all((1..=8).map(extend)).await;
        assert_eq!(store.lock_of(&key, &version).await.unwrap(), Some(lock(8)));
    }
}
