use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::stream_cutter::StreamCutter;
use milkrun_repository::config::LockPolicy;
use milkrun_repository::keys::wrapped::Cost;
use milkrun_repository::point::journal::{Region, Run};
use milkrun_repository::point::root::FileSystem;
use milkrun_repository::repository::{InitOptions, init};
use milkrun_repository::store::faulty::{Fault, Faulty};
use milkrun_repository::store::memory::Memory;
use milkrun_repository::store::{Operation, Trouble};

use super::*;

async fn repository() -> Repository {
    let options = InitOptions {
        lock: LockPolicy::NONE,
        pages: PageCutter::DEFAULT,
        streams: StreamCutter::DEFAULT,
        cost: Cost::TEST,
    };
    init(Arc::new(Memory::new()), b"password", options).await.unwrap().repository
}

fn record(n: u32) -> Record {
    Record::TakeOver { epoch: 99, number: n }
}

/// However a write ends, the next one goes on without a gap, and nothing is in the journal twice.
#[tokio::test]
async fn a_write_that_failed_or_only_seemed_to_is_made_good_by_the_next() {
    for fault in [Fault::Before(Trouble::Unreachable), Fault::After(Trouble::Unreachable)] {
        let sound = repository().await;
        let calls = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let script = move |_: u64, operation: Operation, key: &str| {
            let journal = operation == Operation::Create && key.starts_with("journal/");
            // Fails the second object, once.
            (journal && calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 1).then_some(fault)
        };
        let store = Arc::new(Faulty::new(sound.store.clone(), Arc::new(script)));
        let shaky = Arc::new(sound.over(store));
        let run = RunId::from_bytes([5; 8]);
        let journal = Journal::new(shaky, run, 3);
        journal.note(record(1));
        journal.write().await.unwrap();
        journal.note(Record::Ended);
        assert!(matches!(journal.write().await, Err(JournalError::Store(_))));
        journal.note(record(2));
        journal.write().await.unwrap();
        // The result leaves out take-overs. Of the other records, none is missing and none is there twice.
        let left = Journal::read(&sound, &run).await.unwrap().unwrap();
        assert_eq!((left.records, left.epoch, left.number), (vec![Record::Ended], 3, 2));
    }
}

/// Records that are noted together go into as many objects as they need. When the first object fails, nothing is missing or out
/// of order.
#[tokio::test]
async fn objects_are_bounded_and_one_that_fails_leaves_no_gap() {
    let sound = repository().await;
    let calls = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let script = move |_: u64, operation: Operation, key: &str| {
        let journal = operation == Operation::Create && key.starts_with("journal/");
        let first = || calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
        (journal && first()).then_some(Fault::Before(Trouble::Unreachable))
    };
    let store = Arc::new(Faulty::new(sound.store.clone(), Arc::new(script)));
    let shaky = Arc::new(sound.over(store));
    let run = RunId::from_bytes([5; 8]);
    let journal = Journal::new(shaky, run, 3);
    let regions = |n: u64, runs: usize| Record::Regions {
        volume: "data".parse().unwrap(),
        regions: vec![Region { offset: n, len: 1, unchanged: false, runs: vec![Run { len: 1, chunk: None }; runs] }],
    };
    let all: Vec<Record> = (0..).zip([OBJECT + 7, 40_000, 20_000, 40_000, 1]).map(|(n, r)| regions(n, r)).collect();
    let (first, rest) = all.split_at(2);
    first.iter().cloned().for_each(|r| journal.note(r));
    assert!(matches!(journal.write().await, Err(JournalError::Store(_))));
    rest.iter().cloned().for_each(|r| journal.note(r));
    journal.write().await.unwrap();
    let left = Journal::read(&sound, &run).await.unwrap().unwrap();
    assert_eq!(left.number, 2, "one that is too long, two together, two together");
    let [batch] = &left.batches()[..] else { panic!("three objects") };
    assert!(Journal::objects(&sound, batch).await.unwrap() == all);
}

/// What an older leader writes after a newer one took over does not count.
#[tokio::test]
async fn a_series_counts_as_far_as_the_next_leader_read_it() {
    let repository = Arc::new(repository().await);
    let run = RunId::from_bytes([6; 8]);
    let finished = |volume: &str| {
        Record::Finished(milkrun_repository::point::journal::Finished {
            volume: volume.parse().unwrap(),
            len: 0,
            sector_bytes: 0,
            read_bytes: 0,
            new_bytes: 0,
            stored_bytes: 0,
            notes: Vec::new(),
            file_system: FileSystem::default(),
        })
    };
    let old = Journal::new(repository.clone(), run, 1);
    old.note(finished("first"));
    old.write().await.unwrap();
    let left = Journal::read(&repository, &run).await.unwrap().unwrap();
    let new = Journal::new(repository.clone(), run, 2);
    new.note(Record::TakeOver { epoch: left.epoch, number: left.number });
    new.write().await.unwrap();
    old.note(finished("too-late"));
    old.write().await.unwrap();
    new.note(finished("second"));
    new.write().await.unwrap();
    let left = Journal::read(&repository, &run).await.unwrap().unwrap();
    assert_eq!(left.records, [finished("first"), finished("second")]);
    let take_over = Record::TakeOver { epoch: 1, number: 0 };
    let [batch] = &left.batches()[..] else { panic!("three objects") };
    let all = Journal::objects(&repository, batch).await.unwrap();
    assert_eq!(all, [finished("first"), take_over, finished("second")]);
    // Two leaders can't have one epoch: the second writer gets an error.
    let twin = Journal::new(repository.clone(), run, 2);
    twin.note(finished("twin"));
    assert!(matches!(twin.write().await, Err(JournalError::Superseded(_))));
    Journal::delete(&repository, &run).await;
    assert!(Journal::read(&repository, &run).await.unwrap().is_none());
}
