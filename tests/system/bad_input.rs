//! Wrong input by a person or a script: a clear message, the right exit code, never a panic, and nothing unfinished.

use std::fs;

use milkrun_tests::binary::{Milkrun, ran};
use milkrun_tests::noise;

use crate::round_trip::volume;

#[test]
fn wrong_usage_ends_with_2_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    let image = folder.path().join("image");
    fs::write(&image, noise(10_000, 1)).unwrap();
    let v = volume(&image);
    let twice = format!("other={}", image.display());
    m.run(["init", "--lock-for", "2y", "--lock", "compliance"]).fails(2, "--yes");
    m.run(["init"]).ok();
    let cases: [(&[&str], &str); 15] = [
        (&["backup", "-r", "ftp://x/y", "shop", "--volume", &v], "file:///path or s3://"),
        (&["backup", "-r", "s3://X/y", "shop", "--volume", &v], "bucket"),
        (&["backup", "sh@op", "--volume", &v], "not allowed"),
        (&["backup", "rp-20261122t143000z-0707070707070707", "--volume", &v], "shape of a restore point"),
        (&["backup", "shop", "--volume", "data"], "NAME=PATH"),
        (&["backup", "shop", "--volume", &v, "--volume", &v], "named twice"),
        (&["backup", "shop", "--volume", &v, "--volume", &twice], "the same"),
        (&["backup", "shop"], "nothing to back up"),
        (&["backup", "shop", "--volume", "data=-"], "standard input"),
        (&["backup", "shop", "--volume", &v, "--lock-for", "soon"], "no time"),
        (&["backup", "shop", "--volume", &v, "--lock-for", "30d"], "without locks"),
        (&["backup", "shop", "--volume", &v, "--parent", "x"], "no parent"),
        (&["backup", "shop", "--volume", &v, "--memory", "lots"], "no size"),
        (&["verify", "--data=0"], "1..=100"),
        (&["frobnicate"], "frobnicate"),
    ];
    for (args, text) in cases {
        m.run(args).fails(2, text);
    }
    assert_eq!(m.run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len(), 0);
}

/// Two volumes can't be restored to one target, whatever paths name it. Nothing is written.
#[test]
fn one_target_for_two_volumes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    fs::write(&one, noise(10_000, 1)).unwrap();
    fs::write(&two, noise(10_000, 2)).unwrap();
    let named = |name: &str, path: &std::path::Path| format!("{name}={}", path.display());
    m.run(["backup", "shop", "--volume", &named("a", &one), "--volume", &named("b", &two)]).ok();
    let out = folder.path().join("out");
    let (a, b) = (named("a", &out), named("b", &out));
    m.run(["restore", "shop", "--volume", &a, "--volume", &b]).fails(2, "the same");
    let (first, b) = (named("a", &one), named("b", &folder.path().join("linked")));
    std::os::unix::fs::symlink(&one, folder.path().join("linked")).unwrap();
    m.run(["restore", "shop", "--volume", &first, "--volume", &b, "--force"]).fails(2, "the same");
    assert!(!out.exists());
    assert!(fs::read(&one).unwrap() == noise(10_000, 1));
}

#[test]
fn odd_names_work() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(10_000, 1)).unwrap();
    let long = "x".repeat(300);
    for app in ["a/b/../c", "..", "名前 with spaces", "rp-almost", long.as_str()] {
        let v = format!("{app}={}", image.display());
        m.run(["backup", app, "--volume", &v]).ok();
        let out = folder.path().join("out");
        m.run(["restore", app, "--volume", &format!("{app}={}", out.display())]).ok();
        fs::remove_file(out).unwrap();
    }
    m.run(["verify"]).ok();
}

#[test]
fn invalid_sources_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    m.run(["backup", "shop", "--volume", "data=/no/such/thing"]).fails(1, "/no/such/thing");
    m.run(["backup", "shop", "--volume", &volume(folder.path())]).fails(1, "a folder");
    m.run(["backup", "shop", "--volume", "data=/dev/null"]).fails(1, "character device");
    m.run(["backup", "shop", "--stream", "data=/no/such/thing"]).fails(1, "/no/such/thing");
    assert_eq!(m.run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len(), 0);
    m.run(["verify"]).ok();
}

#[test]
fn invalid_manifests_are_refused_before_a_byte_is_moved() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(10_000, 1)).unwrap();
    let bad = folder.path().join("bad.yaml");
    for (text, wanted) in [
        ("a: [", "bad.yaml:"),
        ("apiVersion: v1\nkind: Pod\n", "bad.yaml:1: the document has no metadata.name"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: x}\n",
            "bad.yaml:5",
        ),
    ] {
        fs::write(&bad, text).unwrap();
        let bad = bad.display().to_string();
        m.run(["backup", "shop", "--volume", &volume(&image), "--manifests", &bad]).fails(1, wanted);
    }
    m.run(["backup", "shop", "--manifests", "/no/such"]).fails(1, "/no/such");
    let packs = folder.path().join("repository/packs");
    assert!(!packs.exists(), "a byte was moved");
}

#[test]
fn a_manifest_of_50_mb_travels() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let line = "x".repeat(100);
    let data: String = (0..480_000).map(|i| format!("  k{i}: {line}\n")).collect();
    let file = folder.path().join("big.yaml");
    fs::write(&file, format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big}}\ndata:\n{data}")).unwrap();
    m.run(["backup", "shop", "--manifests", &file.display().to_string()]).ok();
    let out = folder.path().join("out");
    m.run(["restore", "shop", "--manifests", &out.display().to_string()]).ok();
    let text = fs::read_to_string(out.join("configmap_big.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["data"].as_object().unwrap().len(), 480_000);
}

#[test]
fn wrong_secrets_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["points"]).fails(1, "there is no repository");
    m.run(["init"]).ok();
    m.run(["init"]).fails(1, "already");
    let wrong = Milkrun::in_folder(folder.path()).password("wrong");
    for args in [&["points"][..], &["verify"], &["restore", "shop", "--volume", "a=/tmp/none"]] {
        wrong.run(args).fails(1, "wrong password");
    }
    let mut none = m.command(["points"]);
    ran(none.env_remove("MILKRUN_PASSWORD").output()).fails(2, "MILKRUN_PASSWORD");
    ran(m.command(["points"]).env("MILKRUN_PASSWORD_FILE", "/no/such").output()).fails(1, "/no/such");
    let file = folder.path().join("password");
    fs::write(&file, "correct horse\n").unwrap();
    let from_file =
        ran(m.command(["points"]).env("MILKRUN_PASSWORD", "wrong").env("MILKRUN_PASSWORD_FILE", &file).output());
    assert_eq!(from_file.code, Some(0), "{}", from_file.err);
}

#[test]
fn targets_are_checked_before_a_byte_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(100_000, 1)).unwrap();
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    let out = folder.path().join("out");
    fs::write(&out, b"precious").unwrap();
    m.run(["restore", "shop", "--volume", &volume(&out)]).fails(1, "--force");
    assert_eq!(fs::read(&out).unwrap(), b"precious");
    m.run(["restore", "shop", "--volume", &volume(&out), "--force"]).ok();
    assert!(fs::read(&out).unwrap() == noise(100_000, 1));
    m.run(["restore", "shop", "--volume", "data=/no/such/folder/x"]).fails(1, "/no/such/folder");
    m.run(["restore", "shop", "--volume", "other=/tmp/x"]).fails(2, "it has data");
    m.run(["restore", "nothing", "--volume", "a=/tmp/x"]).fails(1, "no such restore point");
    // An existing longer file keeps its bytes behind the volume, unless `--discard-rest` is passed.
    fs::write(&out, [9; 150_000]).unwrap();
    m.run(["restore", "shop", "--volume", &volume(&out), "--force"]).ok();
    assert_eq!(fs::read(&out).unwrap()[100_000..], [9; 50_000]);
    m.run(["restore", "shop", "--volume", &volume(&out), "--force", "--discard-rest"]).ok();
    assert_eq!(fs::read(&out).unwrap()[100_000..], [0; 50_000]);
}

#[test]
fn an_unreachable_store_is_distinguished_from_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    // Nothing listens on port 9 of loopback.
    let s3 = Milkrun::at("s3://bucket/prefix", folder.path())
        .env("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        .env("AWS_ACCESS_KEY_ID", "a")
        .env("AWS_SECRET_ACCESS_KEY", "b")
        .env("AWS_REGION", "us-east-1");
    let ran = s3.run(["points", "--json"]);
    ran.fails(4, "does not answer");
    assert_eq!(ran.json()["exit"], 4);
}

/// Anybody with write access can put rubbish into a repository. It is reported and skipped, and costs neither time nor
/// memory.
#[test]
fn rubbish_among_the_roots_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(100_000, 1)).unwrap();
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    let points = folder.path().join("repository/points");
    let app = fs::read_dir(&points).unwrap().next().unwrap().unwrap().path();
    let name = |n: u32| app.join(format!("20200101t000000z-{n:016x}"));
    nix::unistd::mkfifo(&name(1), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink(name(2), name(2)).unwrap();
    fs::File::create(name(3)).unwrap().set_len(1 << 40).unwrap();
    for n in 4..40 {
        fs::write(name(n), noise(3 << 20, n.into())).unwrap();
    }
    // Reading 16 roots at once takes less memory than this, whatever they hold.
    let mut bounded = std::process::Command::new("sh");
    let listed = m.command(["points", "--json"]);
    bounded.args(["-c", "ulimit -v 4000000; exec \"$@\"", "sh"]).arg(listed.get_program()).args(listed.get_args());
    bounded.envs(listed.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let ran = ran(bounded.output()).ok();
    assert_eq!(ran.json()["points"].as_array().unwrap().len(), 1);
    assert_eq!(ran.json()["refused"].as_array().unwrap().len(), 39, "{}", ran.err);
    // A point that is newer than all of them is the one that the application's name selects.
    let out = folder.path().join("out");
    m.run(["restore", "shop", "--volume", &volume(&out)]).ok();
}
