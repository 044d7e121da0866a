//! A second, independent S3 server, which differs from the first in details: milkrun keeps the same promises.

use std::fs;

use milkrun_tests::noise;
use milkrun_tests::seaweed::Seaweed;
use milkrun_tests::versity::Versity;

use crate::locked_bucket::{client, make_bucket};
use crate::round_trip::volume;

/// Deletes each key without a version: all objects are still there, behind delete markers.
fn hide_all(endpoint: &str, bucket: &str) -> usize {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = client(endpoint);
        let listed = client.list_objects_v2().bucket(bucket).send().await.unwrap();
        let keys: Vec<String> = listed.contents().iter().filter_map(|o| o.key().map(str::to_owned)).collect();
        for key in &keys {
            client.delete_object().bucket(bucket).key(key).send().await.unwrap();
        }
        keys.len()
    })
}

/// An accidental delete hides everything. Each byte can be restored, only the delete markers are found, and the next
/// backup succeeds.
fn an_accidental_delete_loses_nothing(endpoint: &str, m: &milkrun_tests::binary::Milkrun, folder: &std::path::Path) {
    make_bucket(endpoint, "locked", true);
    let key = folder.join("key.pub").display().to_string();
    let words = ["init", "--lock", "compliance", "--lock-for", "1h", "--write-public-key", &key];
    m.run(words).ok();
    let image = folder.join("image");
    fs::write(&image, noise(40 << 20, 1)).unwrap();
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    m.run(["verify", "--data"]).ok();
    m.run(["verify", "--public-key", &key]).ok();
    assert!(hide_all(endpoint, "locked") > 5);

    let out = folder.join("out");
    m.run(["restore", "shop", "--volume", &volume(&out)]).ok();
    assert!(fs::read(&out).unwrap() == noise(40 << 20, 1));
    for words in [&["verify", "--json"][..], &["verify", "--public-key", &key, "--json"]] {
        let ran = m.run(words);
        assert_eq!(ran.code, Some(3), "{}", ran.err);
        let findings = ran.json()["findings"].as_array().unwrap().clone();
        let hidden = |f: &serde_json::Value| f["reason"].as_str().unwrap().contains("hidden by a delete marker");
        assert!(!findings.is_empty() && findings.iter().all(hidden), "{findings:?}");
    }
    // Nothing is written on top of the delete markers, and the next backup refers to the hidden objects.
    m.run(["init"]).fails(1, "delete markers hide");
    let next = m.run(["backup", "shop", "--volume", &volume(&image), "--json"]).ok().json();
    assert_eq!(next["volumes"][0]["new_bytes"], 0, "{next}");
    fs::remove_file(&out).unwrap();
    m.run(["restore", "shop", "--volume", &volume(&out)]).ok();
    assert!(fs::read(&out).unwrap() == noise(40 << 20, 1));
}

#[test]
fn on_versitygw() {
    let Some(server) = Versity::start("a slip on a second S3 server") else { return };
    let folder = tempfile::tempdir().unwrap();
    an_accidental_delete_loses_nothing(
        &server.endpoint(),
        &server.milkrun("locked", "p", folder.path()),
        folder.path(),
    );
}

#[test]
fn on_seaweedfs() {
    let Some(server) = Seaweed::start("a slip on a real S3 server") else { return };
    let folder = tempfile::tempdir().unwrap();
    an_accidental_delete_loses_nothing(
        &server.endpoint(),
        &server.milkrun("locked", "p", folder.path()),
        folder.path(),
    );
}
