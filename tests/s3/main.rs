//! Tests with a real S3 server: the store's conformance suite, grants and locks, faults of HTTP, and the ways to
//! connect.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod http_faults;
mod ways_in;
mod weak_stores;

use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use milkrun_repository::store::grant::{PutGrant, PutTerms, Redeem};
use milkrun_repository::store::redeem::Redeemer;
use milkrun_repository::store::retry::{Patience, Retrying};
use milkrun_repository::store::s3::{S3, S3Options};
use milkrun_repository::store::throttle::Throttle;
use milkrun_repository::store::{CreateError, Firmness, Key, Lock, Store, Trouble, conformance};
use milkrun_tests::seaweed::Seaweed;
use milkrun_tests::troublemaker::Troublemaker;
use milkrun_tests::versity::Versity;

async fn bucket(name: &str, lock: bool) {
    let config = aws_config::defaults(aws_config::BehaviorVersion::latest()).load().await;
    let config = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
    let client = aws_sdk_s3::Client::from_conf(config);
    client.create_bucket().bucket(name).object_lock_enabled_for_bucket(lock).send().await.unwrap();
    if lock {
        let versions = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        client.put_bucket_versioning().bucket(name).versioning_configuration(versions).send().await.unwrap();
    }
}

/// One server for all tests, since it takes seconds to start.
#[test]
fn a_real_s3_server() {
    let Some(server) = Seaweed::start("store conformance, faults of HTTP, private CA and proxy on S3") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let between = runtime.block_on(Troublemaker::start(&server.endpoint()));
    let endpoint = format!("http://{}", between.address());
    for (name, value) in server.env() {
        let value = if name == "AWS_ENDPOINT_URL" { endpoint.clone() } else { value };
        // SAFETY: this binary has one test, and what runs beside it (the runtime's threads) reads no environment.
        #[expect(unsafe_code, reason = "the SDK's own chain reads the environment of this process")]
        unsafe {
            std::env::set_var(name, value);
        }
    }
    runtime.block_on(async {
        bucket("locked-bucket", true).await;
        let store = S3::new("locked-bucket", "some/prefix", S3Options::default()).await.unwrap();
        let redeemer = Redeemer::new(None, Throttle::none()).unwrap();
        conformance::run(&store, &redeemer).await;
        let capabilities = store.capabilities().await.unwrap();
        assert!(capabilities.locks && capabilities.versions && !capabilities.default_retention);

        let store = Retrying::new(store, Patience::TEST);
        let redeemer = Retrying::new(redeemer, Patience::TEST);
        conformance::run(&store, &redeemer).await;
        a_grant_is_for_one_object(&store, &redeemer).await;

        http_faults::run(&between).await;
    });
    ways_in::run(&server, &runtime);
    weak_stores::run(&server, &runtime);
    drop(server);

    let Some(second) = Versity::start("store conformance on a second S3") else { return };
    set_endpoint(&second.endpoint());
    runtime.block_on(async {
        bucket("locked-bucket", true).await;
        let store = S3::new("locked-bucket", "some/prefix", S3Options::default()).await.unwrap();
        let redeemer = Redeemer::new(None, Throttle::none()).unwrap();
        conformance::run(&store, &redeemer).await;
        let store = Retrying::new(store, Patience::TEST);
        let redeemer = Retrying::new(redeemer, Patience::TEST);
        conformance::run(&store, &redeemer).await;
        a_grant_is_for_one_object(&store, &redeemer).await;
    });
}

fn set_endpoint(endpoint: &str) {
    // SAFETY: this binary has one test, and what runs beside it (the runtime's threads) reads no environment.
    #[expect(unsafe_code, reason = "the SDK's own chain reads the environment of this process")]
    unsafe {
        std::env::set_var("AWS_ENDPOINT_URL", endpoint);
    }
}

/// The server refuses a grant for another body, without the lock headers, or for another key.
async fn a_grant_is_for_one_object(store: &dyn Store, redeemer: &dyn Redeem) {
    let body = bytes::Bytes::from_static(b"the granted body");
    let lock = Lock {
        firmness: Firmness::Compliance,
        until: milkrun_repository::clock::Moment::now().plus(std::time::Duration::from_secs(600)),
    };
    let terms =
        |key: &str| PutTerms { key: Key::new(key), length: body.len() as u64, crc32: 0x1234_5678, lock: Some(lock) };
    // The signed checksum is of another body.
    let wrong = store.grant_put(&terms("packs/00/wrong-checksum")).await.unwrap();
    assert!(redeemer.put(&wrong, body.clone()).await.is_err());
    assert!(store.head(&Key::new("packs/00/wrong-checksum"), None).await.is_err());

    let good = PutTerms { crc32: 0, ..terms("packs/00/good") };
    let grant = store.grant_put(&good).await.unwrap();
    let PutGrant::Presigned { url, headers } = grant else { panic!("S3 grants are presigned") };
    let without_lock = headers.iter().filter(|(n, _)| !n.contains("object-lock")).cloned().collect();
    let tampered = PutGrant::Presigned { url: url.clone(), headers: without_lock };
    assert!(redeemer.put(&tampered, body.clone()).await.is_err(), "stored without the lock headers");
    let elsewhere =
        PutGrant::Presigned { url: url.replace("packs/00/good", "packs/00/other"), headers: headers.clone() };
    assert!(redeemer.put(&elsewhere, body.clone()).await.is_err(), "stored under another key");
    let longer = PutGrant::Presigned { url, headers };
    let more = bytes::Bytes::from(vec![0; body.len() + 1]);
    assert!(redeemer.put(&longer, more).await.is_err(), "stored another length");
    let PutGrant::Presigned { url, headers } = longer else { unreachable!("made above") };
    let without_condition = headers.iter().filter(|(n, _)| !n.eq_ignore_ascii_case("if-none-match")).cloned().collect();
    let unconditional = PutGrant::Presigned { url: url.clone(), headers: without_condition };
    assert!(redeemer.put(&unconditional, body.clone()).await.is_err(), "stored without If-None-Match");
    assert!(store.head(&Key::new("packs/00/good"), None).await.is_err(), "one of them left something");

    // The grant works once, as it was meant.
    let fits = PutTerms { crc32: crc32fast::hash(&body), ..terms("packs/00/once") };
    let once = store.grant_put(&fits).await.unwrap();
    redeemer.put(&once, body.clone()).await.unwrap();
    assert!(matches!(redeemer.put(&once, body.clone()).await, Err(CreateError::Exists(_))), "used twice");
    let versions = store.versions("packs/00/once").await.unwrap();
    assert_eq!(versions.len(), 1, "a second version that nobody can delete: {versions:?}");

    // It does not work after it has expired.
    let options = S3Options { put_lifetime: Some(std::time::Duration::from_secs(1)), ..S3Options::default() };
    let hasty = S3::new("locked-bucket", "some/prefix", options).await.unwrap();
    let late = hasty.grant_put(&PutTerms { key: Key::new("packs/00/late"), ..fits }).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    let refused = redeemer.put(&late, body.clone()).await;
    assert!(matches!(&refused, Err(CreateError::Failed(f)) if f.trouble == Trouble::Expired), "{refused:?}");
    assert!(store.head(&Key::new("packs/00/late"), None).await.is_err());
}
