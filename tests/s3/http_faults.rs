//! Faults between milkrun and an S3 server, at the level of HTTP. Transient faults are retried, permanent ones are
//! reported as what they are, and nothing unfinished is listed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::{Method, Request, body::Incoming};
use milkrun_repository::config::{LockMode, LockPolicy};
use milkrun_repository::store::SharedStore;
use milkrun_repository::store::grant::Redeem;
use milkrun_repository::store::redeem::Redeemer;
use milkrun_repository::store::s3::{S3, S3Options};
use milkrun_repository::store::throttle::Throttle;
use milkrun_tests::embedded::{World, sound};
use milkrun_tests::noise;
use milkrun_tests::troublemaker::{Trouble, Troublemaker};
use tonic::Code;

// The shortest period for which locks last during the whole test.
const LOCKED: LockPolicy = LockPolicy { mode: LockMode::Compliance, period: Duration::from_secs(600) };

/// A fresh repository in the locked bucket.
async fn world(prefix: &str) -> World {
    let store: SharedStore = Arc::new(S3::new("locked-bucket", prefix, S3Options::default()).await.unwrap());
    let redeem: Arc<dyn Redeem> =
        Arc::new(Redeemer::new(None, Throttle::none()).unwrap().stalled_after(Duration::from_secs(2)));
    World::over(store, redeem, LOCKED).await
}

fn is_put_of(request: &Request<Incoming>, folder: &str) -> bool {
    request.method() == Method::PUT && request.uri().path().contains(folder) && !is_retention(request)
}

fn is_retention(request: &Request<Incoming>) -> bool {
    request.uri().query().is_some_and(|q| q.contains("retention"))
}

pub(crate) async fn run(between: &Troublemaker) {
    transient_faults_are_retried(between).await;
    permanent_faults_are_reported(between).await;
    success_without_effect_is_noticed(between).await;
    a_root_that_was_stored_is_found_again(between).await;
    flipped_bits_are_never_written(between).await;
    a_store_with_another_clock_is_refused(between).await;
}

/// Decides which requests fail: one of so many, and the same request not so often that retries are used up.
#[derive(Default)]
struct Seen {
    requests: u64,
    met: HashMap<(Method, String), u32>,
}

impl Seen {
    fn one_of(&mut self, every: u64, request: &Request<Incoming>) -> bool {
        self.requests += 1;
        if self.requests % every != 1 {
            return false;
        }
        let met = self.met.entry((request.method().clone(), request.uri().path().to_owned())).or_default();
        *met += 1;
        *met <= 4
    }
}

/// One of three requests fails in one way.
async fn transient_faults_are_retried(between: &Troublemaker) {
    let ways = [
        Trouble::Answer(500, "InternalError"),
        Trouble::Answer(503, "SlowDown"),
        Trouble::Answer(503, "ServiceUnavailable"),
        Trouble::Answer(400, "RequestTimeout"),
        Trouble::Answer(409, "ConditionalRequestConflict"),
        Trouble::Reset,
        Trouble::Stall,
        Trouble::DoneThenReset,
        Trouble::DoneThenStall,
        Trouble::DoneThen(500, "InternalError"),
        Trouble::Truncate,
        Trouble::Whole,
        Trouble::Shorter,
        Trouble::Longer,
    ];
    for (i, trouble) in ways.into_iter().enumerate() {
        let world = world(&format!("passing-{i}")).await;
        let content = noise(12 << 20, i as u64);
        world.content("data", content.clone());
        let stalls = matches!(trouble, Trouble::Stall | Trouble::DoneThenStall);
        // A stall takes two seconds, the time limit in tests.
        let every = if stalls { 9 } else { 3 };
        let (seen, chosen) = (Mutex::new(Seen::default()), trouble.clone());
        between.script(move |_, request| {
            let (method, query) = (request.method(), request.uri().query().unwrap_or_default());
            let fits = match &chosen {
                Trouble::Truncate => method == Method::GET,
                // Only a header that is not signed can be removed: the range in a request by grant.
                Trouble::Whole | Trouble::Shorter | Trouble::Longer => {
                    method == Method::GET && query.contains("X-Amz-Signature")
                }
                // The errors for a body that is too slow, and for two conditional creates at once.
                Trouble::Answer(400 | 409, _) => method == Method::PUT && !is_retention(request),
                _ => true,
            };
            (fits && seen.lock().unwrap().one_of(every, request)).then(|| chosen.clone())
        });
        let stored = world.back_up(&["data"], sound()).await;
        assert!(stored.is_ok(), "{trouble:?}: {stored:?}");
        // The next backup finds the known chunks in spite of the faults.
        let again = world.back_up(&["data"], sound()).await;
        assert!(again.as_ref().is_ok_and(|a| a.volumes[0].new_bytes == 0), "{trouble:?}: {again:?}");
        let restored = world.restore(&["data"], sound()).await;
        assert!(restored.is_ok(), "{trouble:?}: {restored:?}");
        let troubles = between.behave();
        assert!(troubles >= 1, "{trouble:?} did not happen");
        assert!(std::fs::read(world.target("data")).unwrap() == content, "{trouble:?}");
        assert_eq!(world.points().await, 2, "{trouble:?}");
        let report = world.verify().await;
        assert!(report.findings.is_empty(), "{trouble:?}: {:?}", report.findings);
    }
}

/// A permanent fault ends the backup with the right message and leaves no point. A later backup succeeds.
async fn permanent_faults_are_reported(between: &Troublemaker) {
    let cases = [
        (Trouble::Answer(403, "AccessDenied"), Code::FailedPrecondition, "access denied"),
        (Trouble::Answer(403, "RequestTimeTooSkewed"), Code::FailedPrecondition, "clock"),
        (Trouble::Answer(404, "NoSuchBucket"), Code::FailedPrecondition, "NoSuchBucket"),
        (Trouble::Answer(500, "InternalError"), Code::Unavailable, "does not answer"),
        (Trouble::Answer(503, "SlowDown"), Code::Unavailable, "overloaded"),
        (Trouble::Answer(507, "InsufficientStorage"), Code::FailedPrecondition, "no space left"),
        (Trouble::Reset, Code::Unavailable, "does not answer"),
        (Trouble::DoneThenReset, Code::Unavailable, "does not answer"),
    ];
    let world = world("staying").await;
    world.content("data", noise(5 << 20, 77));
    for folder in ["packs/", "points/"] {
        for (trouble, code, text) in &cases {
            // A root that was stored makes a point, whatever the answer was. Another test covers this.
            if folder == "points/" && *trouble == Trouble::DoneThenReset {
                continue;
            }
            let before = world.points().await;
            let chosen = trouble.clone();
            between.script(move |_, request| is_put_of(request, folder).then(|| chosen.clone()));
            let status = world.back_up(&["data"], sound()).await;
            let troubles = between.behave();
            // All chunks may be known by now: then only a metadata pack is uploaded, and no data pack.
            let status = status.expect_err(&format!("{folder} {trouble:?}, {troubles} times"));
            assert_eq!(status.code(), *code, "{folder} {trouble:?}: {status}");
            assert!(status.message().contains(text), "{folder} {trouble:?}: {status}");
            assert_eq!(world.points().await, before, "{folder} {trouble:?}");
        }
        world.back_up(&["data"], sound()).await.unwrap();
        // New content, so that the next round has packs to upload.
        world.content("data", noise(5 << 20, 78));
    }
    // The same for restores.
    for (trouble, code, text) in [
        (Trouble::Answer(403, "AccessDenied"), Code::FailedPrecondition, "access denied"),
        (Trouble::Answer(404, "NoSuchKey"), Code::DataLoss, "is missing"),
        (Trouble::Answer(500, "InternalError"), Code::Unavailable, "does not answer"),
        (Trouble::Truncate, Code::Unavailable, ""),
    ] {
        let chosen = trouble.clone();
        between.script(move |_, request| {
            let pack = request.method() == Method::GET && request.uri().path().contains("/packs/");
            pack.then(|| chosen.clone())
        });
        let status = world.restore(&["data"], sound()).await.expect_err(&format!("{trouble:?}"));
        between.behave();
        assert_eq!(status.code(), code, "{trouble:?}: {status}");
        assert!(status.message().contains(text), "{trouble:?}: {status}");
        assert!(!world.target("data").exists(), "{trouble:?}");
    }
    assert!(world.verify().await.findings.is_empty());
}

/// The server answers 200 to a PUT, and stores nothing.
async fn success_without_effect_is_noticed(between: &Troublemaker) {
    for folder in ["packs/", "placements/", "points/"] {
        let world = world(&format!("lie-{}", folder.trim_end_matches('/'))).await;
        world.content("data", noise(5 << 20, 5));
        between.script(move |_, request| is_put_of(request, folder).then_some(Trouble::Lie));
        let status = world.back_up(&["data"], sound()).await.unwrap_err();
        assert!(between.behave() > 0);
        assert!(status.message().contains("is not in the store"), "{folder}: {status}");
        assert_eq!(world.points().await, 0, "{folder}");
        world.back_up(&["data"], sound()).await.unwrap();
        assert!(world.verify().await.findings.is_empty(), "{folder}");
    }
}

/// The critical case: the root's PUT was applied, and each answer to it was lost. The root is read back to find out.
async fn a_root_that_was_stored_is_found_again(between: &Troublemaker) {
    for trouble in [Trouble::DoneThenReset, Trouble::DoneThenStall, Trouble::DoneThen(503, "SlowDown")] {
        let world = world(&format!("root-{trouble:?}").replace(['(', ')', '"', ' ', ','], "")).await;
        world.content("data", noise(1 << 20, 6));
        let chosen = trouble.clone();
        between.script(move |_, request| is_put_of(request, "points/").then(|| chosen.clone()));
        let done = world.back_up(&["data"], sound()).await;
        assert!(between.behave() > 0);
        assert!(done.is_ok(), "{trouble:?}: {done:?}");
        assert_eq!(world.points().await, 1);
    }
}

async fn flipped_bits_are_never_written(between: &Troublemaker) {
    let world = world("flipped").await;
    world.content("data", noise(5 << 20, 6));
    world.back_up(&["data"], sound()).await.unwrap();
    between.script(|_, request| {
        let pack = request.method() == Method::GET && request.uri().path().contains("/packs/");
        pack.then_some(Trouble::Flip)
    });
    let status = world.restore(&["data"], sound()).await.unwrap_err();
    assert!(between.behave() > 0);
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    assert!(!world.target("data").exists());
}

/// A store whose clock is years off is refused: its locks would be useless.
async fn a_store_with_another_clock_is_refused(between: &Troublemaker) {
    let world = world("skewed").await;
    world.content("data", noise(100_000, 7));
    between.script(|_, request| {
        (request.method() == Method::HEAD).then_some(Trouble::Dated("Wed, 21 Oct 2015 07:28:00 GMT"))
    });
    let status = world.back_up(&["data"], sound()).await.unwrap_err();
    assert!(between.behave() > 0);
    assert!(status.message().contains("clock"), "{status}");
    assert_eq!(world.points().await, 0);
}
