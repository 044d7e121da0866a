//! `init` tests the features that milkrun relies on: a store that lacks one, or only pretends to have it, is refused
//! with a message that names it.

use std::sync::atomic::{AtomicU64, Ordering};

use aws_sdk_s3::types::{
    DefaultRetention, ObjectLockConfiguration, ObjectLockEnabled, ObjectLockRetentionMode, ObjectLockRule,
};
use hyper::{Method, Request, body::Incoming};
use milkrun_tests::seaweed::Seaweed;
use milkrun_tests::troublemaker::{Trouble, Troublemaker};
use tokio::runtime::Runtime;

type Picks = fn(&Request<Incoming>) -> bool;

pub(crate) fn run(server: &Seaweed, runtime: &Runtime) {
    a_bucket_that_locks_by_itself_is_refused(server, runtime);
    what_a_store_pretends_is_noticed(server, runtime);
}

fn what_a_store_pretends_is_noticed(server: &Seaweed, runtime: &Runtime) {
    let folder = tempfile::tempdir().unwrap();
    let between = runtime.block_on(Troublemaker::start(&server.endpoint()));
    let endpoint = format!("http://{}", between.address());
    let m = server.milkrun("locked-bucket", "weak", folder.path()).env("AWS_ENDPOINT_URL", &endpoint);
    let is_put: Picks = |r| r.method() == Method::PUT && r.uri().query().is_none_or(|q| !q.contains("retention"));
    let is_retention: Picks = |r| r.method() == Method::PUT && r.uri().query().is_some_and(|q| q.contains("retention"));
    let is_head: Picks = |r| r.method() == Method::HEAD && r.uri().path().contains("probe");
    let is_get: Picks = |r| r.method() == Method::GET && r.uri().path().contains("probe");
    let is_delete: Picks = |r| r.method() == Method::DELETE;
    // The fault, the requests that it affects, the number of the first of them, and the expected message.
    let cases: [(Trouble, Picks, u64, &str); 5] = [
        (Trouble::Lie, is_put, 1, "ignores create-only PUTs"),
        (Trouble::Lie, is_retention, 0, "a lock could be shortened"),
        (Trouble::Lie, is_delete, 0, "a locked version could be deleted"),
        (Trouble::Without("x-amz-object-lock"), is_head, 0, "the lock is not shown on the object"),
        (Trouble::Flip, is_get, 0, "returned other bytes"),
    ];
    for (trouble, picks, from, wanted) in cases {
        let seen = AtomicU64::new(0);
        between.script(move |_, r| (picks(r) && seen.fetch_add(1, Ordering::SeqCst) >= from).then(|| trouble.clone()));
        m.run(["init", "--lock", "compliance", "--lock-for", "10m"]).fails(1, wanted);
        assert!(between.behave() > 0, "{wanted}");
    }
    m.run(["points"]).fails(1, "there is no repository");
    m.run(["init", "--lock", "compliance", "--lock-for", "10m"]).ok();
}

/// In such a bucket, leases could not be deleted.
fn a_bucket_that_locks_by_itself_is_refused(server: &Seaweed, runtime: &Runtime) {
    let folder = tempfile::tempdir().unwrap();
    runtime
        .block_on(async {
            super::bucket("locks-by-itself", true).await;
            let config = aws_config::defaults(aws_config::BehaviorVersion::latest()).load().await;
            let config = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
            let days = DefaultRetention::builder().mode(ObjectLockRetentionMode::Governance).days(1).build();
            let lock = ObjectLockConfiguration::builder()
                .object_lock_enabled(ObjectLockEnabled::Enabled)
                .rule(ObjectLockRule::builder().default_retention(days).build())
                .build();
            let client = aws_sdk_s3::Client::from_conf(config);
            client
                .put_object_lock_configuration()
                .bucket("locks-by-itself")
                .object_lock_configuration(lock)
                .send()
                .await
        })
        .unwrap();
    let m = server.milkrun("locks-by-itself", "p", folder.path());
    for lock in ["compliance", "none"] {
        m.run(["init", "--lock", lock]).fails(1, "default retention");
    }
}
