//! A bucket with Object Lock: `init` proves it, points are locked, and nobody with write access can destroy a committed
//! point.

use std::fs;

use milkrun_repository::store::s3::{S3, S3Options};
use milkrun_repository::store::{DeleteError, Store};
use milkrun_tests::noise;
use milkrun_tests::seaweed::Seaweed;

use crate::round_trip::volume;

pub(crate) fn client(endpoint: &str) -> aws_sdk_s3::Client {
    let credentials = aws_sdk_s3::config::Credentials::new(
        milkrun_tests::seaweed::ACCESS_KEY,
        milkrun_tests::seaweed::SECRET_KEY,
        None,
        None,
        "test",
    );
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
        .credentials_provider(credentials)
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

pub(crate) fn make_bucket(endpoint: &str, name: &str, lock: bool) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = client(endpoint);
        client.create_bucket().bucket(name).object_lock_enabled_for_bucket(lock).send().await.unwrap();
    });
}

/// Deletes every version that the store lets go, then puts a delete marker on what is left.
async fn delete_all(client: &aws_sdk_s3::Client, bucket: &str) {
    let (mut deleted, mut kept) = (0, 0);
    for _ in 0..2 {
        let listed = client.list_object_versions().bucket(bucket).send().await.unwrap();
        assert_ne!(listed.is_truncated(), Some(true), "a thousand versions are enough for this test");
        for v in listed.versions() {
            let (key, version) = (v.key().unwrap(), v.version_id().unwrap());
            match client.delete_object().bucket(bucket).key(key).version_id(version).send().await {
                Ok(_) => deleted += 1,
                Err(_) => kept += 1,
            }
            client.delete_object().bucket(bucket).key(key).send().await.unwrap();
        }
    }
    assert!(deleted > 0 && kept > 10, "{deleted} went, {kept} stayed");
}

#[test]
fn a_committed_point_can_neither_be_deleted_nor_shortened() {
    let Some(server) = Seaweed::start("object lock on a real S3 server") else { return };
    make_bucket(&server.endpoint(), "locked", true);
    make_bucket(&server.endpoint(), "plain", false);
    let folder = tempfile::tempdir().unwrap();

    // A bucket without Object Lock is refused if locks are asked for, and accepted otherwise.
    let plain = server.milkrun("plain", "p", folder.path());
    plain.run(["init", "--lock", "compliance", "--lock-for", "1h"]).fails(1, "no Object Lock");
    plain.run(["init"]).ok();

    let m = server.milkrun("locked", "some/prefix", folder.path());
    let key = folder.path().join("key.pub").display().to_string();
    let recovery = folder.path().join("recovery.key").display().to_string();
    let made = m
        .run([
            "init",
            "--lock",
            "compliance",
            "--lock-for",
            "1h",
            "--write-public-key",
            &key,
            "--write-recovery-key",
            &recovery,
            "--json",
        ])
        .ok()
        .json();
    assert_eq!(made["lock_enforced"], true);
    assert!(made["policies"]["writer"]["Statement"].is_array());
    let image = folder.path().join("image");
    fs::write(&image, [noise(40 << 20, 1), vec![0; 8 << 20]].concat()).unwrap();
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    let first = fs::read(&image).unwrap();
    fs::write(&image, [noise(40 << 20, 1), noise(1 << 20, 2), vec![0; 7 << 20]].concat()).unwrap();
    let contents = [first, fs::read(&image).unwrap()];
    let second = m.run(["backup", "shop", "--volume", &volume(&image), "--json"]).ok().json();
    assert!(second["volumes"][0]["new_bytes"].as_u64().unwrap() < 2 << 20, "{second}");

    let out = folder.path().join("out");
    m.run(["restore", "shop", "--volume", &volume(&out)]).ok();
    assert!(fs::read(&out).unwrap() == fs::read(&image).unwrap());
    m.run(["verify", "--data"]).ok();
    m.run(["verify", "--public-key", &key]).ok();

    for (name, value) in server.env() {
        // SAFETY: the other tests of this binary start processes with an environment of their own and read none of these.
        #[expect(unsafe_code, reason = "the SDK's chain reads the environment of this process")]
        unsafe {
            std::env::set_var(name, value);
        }
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = S3::new("locked", "some/prefix", S3Options::default()).await.unwrap();
        let mut tried = 0;
        for prefix in ["packs/", "points/", "placements/", "keys/", "domains/", "repository.json"] {
            for l in store.versions(prefix).await.unwrap() {
                let deleted = store.delete(&l.key, &l.version).await;
                assert!(matches!(deleted, Err(DeleteError::Locked(_))), "{}: {deleted:?}", l.key);
                let head = store.head(&l.key, Some(&l.version)).await.unwrap();
                let lock = head.lock.unwrap();
                let now = milkrun_repository::clock::Moment::now();
                let shorter =
                    milkrun_repository::store::Lock { until: now.plus(std::time::Duration::from_secs(60)), ..lock };
                assert!(store.extend_lock(&l.key, &l.version, shorter).await.is_err(), "{} was shortened", l.key);
                tried += 1;
            }
        }
        assert!(tried >= 10, "{tried}");

        // A root has a delete marker, and another version on top: the locked version is still found, and both are
        // reported.
        let client = client(&server.endpoint());
        let root = store.versions("points/").await.unwrap().pop().unwrap().key;
        let name = format!("some/prefix/{root}");
        client.delete_object().bucket("locked").key(&name).send().await.unwrap();
        client.put_object().bucket("locked").key(&name).body(b"forged".to_vec().into()).send().await.unwrap();
        client.delete_object().bucket("locked").key(&name).send().await.unwrap();
    });
    let listed = m.run(["points", "--json"]).ok().json();
    assert_eq!(listed["points"].as_array().unwrap().len(), 2, "{listed}");
    assert_eq!(listed["refused"].as_array().unwrap().len(), 1, "{listed}");
    let found = m.run(["verify", "--json"]);
    assert_eq!(found.code, Some(3));
    assert!(found.out.contains("delete marker") && found.out.contains("second version"), "{}", found.out);
    fs::remove_file(&out).unwrap();
    m.run(["restore", "shop", "--volume", &volume(&out)]).ok();
    assert!(fs::read(&out).unwrap() == fs::read(&image).unwrap());

    // Somebody with all rights but the bypass deletes whatever goes, and hides the rest. Every point is restored afterwards, with the
    // password and with the recovery key, also from a machine without a cache.
    runtime.block_on(delete_all(&client(&server.endpoint()), "locked"));
    let elsewhere = tempfile::tempdir().unwrap();
    let m = server.milkrun("locked", "some/prefix", elsewhere.path());
    let points = m.run(["points", "--json"]).ok().json();
    let points: Vec<_> = points["points"].as_array().unwrap().iter().map(|p| p["point"].clone()).collect();
    assert_eq!(points.len(), 2);
    for (n, point) in points.iter().enumerate() {
        for args in [&[][..], &["--recovery-key-file", &recovery]] {
            let out = elsewhere.path().join("out");
            let _ = fs::remove_file(&out);
            m.run([&["restore", point.as_str().unwrap(), "--volume", &volume(&out)], args].concat()).ok();
            assert!(fs::read(&out).unwrap() == contents[n], "point {n} {args:?}");
        }
    }
    let said = m.run(["verify", "--json"]);
    assert_eq!(said.code, Some(3));
    assert!(!said.out.contains("missing"), "what is hidden is not missing: {}", said.out);
    // The next backup goes on, and its keys are those of before.
    let third = m.run(["backup", "shop", "--volume", &volume(&image), "--json"]).ok().json();
    assert_eq!(third["volumes"][0]["new_bytes"], 0, "{third}");

    let wrong = server.milkrun("locked", "some/prefix", folder.path()).env("AWS_SECRET_ACCESS_KEY", "wrong");
    wrong.run(["points"]).fails(1, "access denied");
    server.milkrun("no-such-bucket", "p", folder.path()).run(["points"]).fails(1, "");
}
