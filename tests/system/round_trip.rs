//! Volumes of every shape, streams and manifests: a restore gives what was backed up.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use milkrun_tests::binary::{Milkrun, ran};
use milkrun_tests::noise;

const MANIFEST: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: shop}\ndata: {x: '1'}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: b}\n";

pub(crate) fn volume(path: &Path) -> String {
    format!("data={}", path.display())
}

fn sparse(path: &Path, len: u64, islands: &[(u64, usize)]) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::create(path).unwrap();
    file.set_len(len).unwrap();
    for (i, &(at, n)) in islands.iter().enumerate() {
        file.write_all_at(&noise(n, i as u64 + 1), at).unwrap();
    }
}

#[test]
fn volumes_of_every_shape_come_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let region = 16 << 20;
    let shapes: [(&str, Vec<u8>); 8] = [
        ("empty", vec![]),
        ("one byte", vec![7]),
        ("one zero", vec![0]),
        ("a page and a byte", noise(4097, 1)),
        ("not a multiple", noise((1 << 20) + 777, 2)),
        ("zeros", vec![0; 3 << 20]),
        ("regions", noise(region * 2 + 5, 3)),
        ("mixed", [noise(1 << 20, 4), vec![0; 2 << 20], b"text ".repeat(1 << 17), vec![0; 5000]].concat()),
    ];
    for (name, content) in &shapes {
        let image = folder.path().join("image");
        fs::write(&image, content).unwrap();
        let app = format!("app {name}");
        for round in 0..2 {
            let made = m.run(["backup", &app, "--volume", &volume(&image), "--allow-empty", "--json"]).ok().json();
            let v = &made["volumes"][0];
            assert_eq!(v["size_bytes"], content.len() as u64, "{name}");
            if round == 1 {
                assert_eq!(v["new_bytes"], 0, "{name}: nothing changed");
            }
        }
        let out = folder.path().join("out");
        // Restored to a file, and to a stream.
        for how in ["--volume", "--stream"] {
            let restored = m.run(["restore", &app, how, &volume(&out), "--json"]).ok().json();
            assert!(fs::read(&out).unwrap() == *content, "{name} {how}");
            let v = &restored["volumes"][0];
            assert_eq!(v["written_bytes"].as_u64().unwrap() + v["hole_bytes"].as_u64().unwrap(), content.len() as u64);
            fs::remove_file(&out).unwrap();
        }
    }
    // The same content, backed up as a stream.
    for (name, content) in &shapes {
        let from = folder.path().join("from");
        fs::write(&from, content).unwrap();
        let app = format!("stream {name}");
        m.run(["backup", &app, "--stream", &volume(&from), "--allow-empty"]).ok();
        let out = folder.path().join("out");
        m.run(["restore", &app, "--stream", &volume(&out)]).ok();
        assert!(fs::read(&out).unwrap() == *content, "{name} as a stream");
        fs::remove_file(&out).unwrap();
    }
    let verified = m.run(["verify", "--data", "--json"]).ok().json();
    assert_eq!(verified["checked"]["points"], 24);
    assert_eq!(m.run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len(), 24);
}

#[test]
fn a_sparse_volume_of_10_tib_costs_what_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    let len: u64 = 10 << 40;
    let islands = [(0, 5000), (3 << 40, 1 << 20), (len - 4096, 4096)];
    sparse(&image, len, &islands);
    let made = m.run(["backup", "big", "--volume", &volume(&image), "--json"]).ok().json();
    assert_eq!(made["volumes"][0]["size_bytes"], len);
    assert!(made["volumes"][0]["read_bytes"].as_u64().unwrap() < 64 << 20, "{made}");
    assert!(made["stored_bytes"].as_u64().unwrap() < 4 << 20, "{made}");
    let again = m.run(["backup", "big", "--volume", &volume(&image), "--json"]).ok().json();
    assert_eq!(again["volumes"][0]["new_bytes"], 0);
    let out = folder.path().join("out");
    m.run(["restore", "big", "--volume", &volume(&out)]).ok();
    assert_eq!(fs::metadata(&out).unwrap().len(), len);
    use std::os::unix::fs::{FileExt, MetadataExt};
    assert!(fs::metadata(&out).unwrap().blocks() * 512 < 16 << 20, "holes were written");
    let file = fs::File::open(&out).unwrap();
    for (i, &(at, n)) in islands.iter().enumerate() {
        let mut found = vec![0; n];
        file.read_exact_at(&mut found, at).unwrap();
        assert_eq!(found, noise(n, i as u64 + 1));
    }
}

#[test]
fn streams_come_from_standard_input_and_go_to_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let content = [noise(20 << 20, 5), vec![0; 3 << 20], b"INSERT INTO t VALUES (1);\n".repeat(100_000)].concat();
    let back_up = |content: &[u8]| {
        let mut child = m
            .command(["backup", "shop", "--stream", "dump=-", "--json"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(content).unwrap();
        ran(child.wait_with_output()).ok().json()
    };
    let made = back_up(&content);
    assert_eq!(made["volumes"][0]["size_bytes"], content.len() as u64);
    // Content that moves is deduplicated.
    let shifted = [b"a new line in front\n".to_vec(), content.clone()].concat();
    let again = back_up(&shifted);
    assert!(again["volumes"][0]["new_bytes"].as_u64().unwrap() < 2 << 20, "{again}");
    let restored = m.command(["restore", "shop", "--stream", "dump=-"]).output().unwrap();
    assert!(restored.status.success());
    assert!(restored.stdout == shifted, "the stream differs");
    // Many threads and little memory: groups that wait for their turn must not hold the room that the next group needs.
    let out = folder.path().join("dump.sql");
    let target = format!("dump={}", out.display());
    m.run(["restore", "shop", "--stream", &target, "--threads", "8", "--memory", "64MiB"]).ok();
    assert!(fs::read(out).unwrap() == shifted);
}

#[test]
fn manifests_travel_with_the_volumes() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let (image, yaml) = (folder.path().join("image"), folder.path().join("m.yaml"));
    fs::write(&image, noise(1 << 20, 1)).unwrap();
    fs::write(&yaml, MANIFEST).unwrap();
    let yaml = yaml.display().to_string();
    m.run(["backup", "shop", "--volume", &volume(&image), "--manifests", &yaml]).ok();
    let shown = m.run(["show", "shop", "--json"]).ok().json();
    assert_eq!(shown["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(shown["manifests"][0]["name"], "a");
    let out = folder.path().join("out");
    let done = m.run(["restore", "shop", "--manifests", &out.display().to_string(), "--json"]).ok().json();
    assert_eq!(done["left_out"][0], "data");
    let text = fs::read_to_string(out.join("configmap_shop_a.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["data"]["x"], "1");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
    // An application may consist of manifests alone.
    m.run(["backup", "config only", "--manifests", &yaml]).ok();
    m.run(["verify", "--data"]).ok();
}

/// Manifests go through the same cutter as streams: unchanged chunks are referred to, and not stored again.
#[test]
fn manifests_that_did_not_change_are_not_stored_again() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let k8s = folder.path().join("k8s");
    fs::create_dir(&k8s).unwrap();
    let object = |n: u64, seed: u64| {
        let hex: String = noise(256 << 10, seed).iter().map(|b| format!("{b:02x}")).collect();
        let map = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c{n:02}}}\ndata: {{x: '{hex}'}}\n");
        fs::write(k8s.join(format!("{n:02}.yaml")), map).unwrap();
    };
    (0..64).for_each(|n| object(n, n + 1));
    let text = k8s.display().to_string();
    let backup = || {
        let done = m.run(["backup", "shop", "--manifests", &text, "--json"]).ok().json();
        done["stored_bytes"].as_u64().unwrap()
    };
    let first = backup();
    assert!(first > 16 << 20, "hexadecimal digits of noise are half noise: {first}");
    assert!(backup() < 1 << 20);
    object(40, 1000);
    let changed = backup();
    // New are the chunks of the changed object, and their neighbours, of at most 512 KiB each.
    assert!((128 << 10..first / 4).contains(&changed), "{changed} of {first}");
    let out = folder.path().join("out");
    m.run(["restore", "shop", "--manifests", &out.display().to_string()]).ok();
    assert_eq!(fs::read_dir(&out).unwrap().count(), 64);
    let value = fs::read_to_string(out.join("configmap_c40.json")).unwrap();
    assert!(value.contains(&noise(8, 1000).iter().map(|b| format!("{b:02x}")).collect::<String>()));
    m.run(["verify", "--data"]).ok();
}

#[test]
fn a_time_picks_the_last_point_at_or_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    let mut times = Vec::new();
    for i in 0..3 {
        fs::write(&image, noise(100_000, i)).unwrap();
        let made = m.run(["backup", "shop", "--volume", &volume(&image), "--json"]).ok().json();
        times.push(made["time"].as_str().unwrap().to_owned());
    }
    for (i, time) in times.iter().enumerate() {
        let out = folder.path().join("out");
        m.run(["restore", &format!("shop@{time}"), "--volume", &volume(&out)]).ok();
        assert!(fs::read(&out).unwrap() == noise(100_000, i as u64));
        fs::remove_file(out).unwrap();
    }
    m.run(["show", "shop@1999-01-01T00:00:00Z"]).fails(1, "no such restore point");
    m.run(["show", "shop@tomorrow"]).fails(2, "RFC 3339");
    // Without a target, the error says which volumes there are.
    m.run(["restore", "shop"]).fails(2, "the point has data");
}

#[test]
fn two_processes_back_up_into_one_repository_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let mut children = Vec::new();
    for i in 0..4_u64 {
        let image = folder.path().join(format!("image{i}"));
        fs::write(&image, noise(30 << 20, i / 2)).unwrap();
        let app = format!("app{}", i % 2);
        children.push(m.command(["backup", &app, "--volume", &volume(&image)]).spawn().unwrap());
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(m.run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len(), 4);
    m.run(["verify", "--data"]).ok();
}

/// There is only one way through the code: also on one machine, an agent registers with a coordinator over gRPC.
#[test]
fn one_machine_uses_the_same_services() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(100_000, 1)).unwrap();
    let log = "milkrun_coordinator=info,milkrun_agent=info";
    let ran = Milkrun::in_folder(folder.path())
        .env("MILKRUN_LOG", log)
        .run(["backup", "shop", "--volume", &volume(&image)])
        .ok();
    for said in ["an agent is connected", "the coordinator takes this agent", "committed"] {
        assert!(ran.err.contains(said), "no {said:?} in:\n{}", ran.err);
    }
}

#[test]
fn a_lock_that_was_extended_is_not_extended_again() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init", "--lock", "governance", "--lock-for", "10d"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(5 << 20, 1)).unwrap();
    let extended = |lock_for: &str| {
        let words = ["backup", "app", "--volume", &volume(&image), "--lock-for", lock_for, "--json"];
        m.run(words).ok().json()["locks_extended"].as_u64().unwrap()
    };
    assert_eq!(extended("10d"), 0);
    assert!(extended("40d") > 0);
    assert_eq!(extended("40d"), 0);
    m.run(["verify"]).ok();
}

#[test]
fn manifests_of_like_names_come_back_as_files_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    // The layout of a ConfigMap that the kubelet mounts: each file is a link to another folder.
    let k8s = folder.path().join("k8s");
    fs::create_dir_all(k8s.join("..2026_11_29")).unwrap();
    let role = |namespace: &str, name: &str| {
        format!("apiVersion: v1\nkind: Role\nmetadata: {{{namespace} name: {name}}}\nmode: 0644\non: yes\n---\n")
    };
    let text = [role("", "shop_admin"), role("namespace: shop,", "admin"), role("namespace: shop,", "Admin")].concat();
    fs::write(k8s.join("..2026_11_29/roles.yaml"), text).unwrap();
    std::os::unix::fs::symlink("..2026_11_29", k8s.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/roles.yaml", k8s.join("roles.yaml")).unwrap();
    m.run(["backup", "shop", "--manifests", &k8s.display().to_string()]).ok();
    let out = folder.path().join("out");
    let out_text = out.display().to_string();
    let done = m.run(["restore", "shop", "--manifests", &out_text, "--json"]).ok().json();
    assert_eq!(done["manifests"], 3);
    let files: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 3, "{files:?}");
    for file in &files {
        let value: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        assert_eq!((&value["mode"], &value["true"]), (&420.into(), &true.into()), "{value}");
    }
    // A file that another point left there is not part of this one, and is reported.
    fs::write(out.join("left.json"), "{}").unwrap();
    m.run(["restore", "shop", "--manifests", &out_text]).fails(2, "not empty");
    let again = m.run(["restore", "shop", "--manifests", &out_text, "--force", "--json"]).ok();
    assert_eq!(again.json()["other_files"], serde_json::json!(["left.json"]));
    assert!(again.err.contains("stay: left.json"), "{}", again.err);
}
