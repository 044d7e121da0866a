//! Whose application a restore point is, of which moments its volumes are, and what it has not.

use std::fs;

use milkrun_tests::binary::Milkrun;
use milkrun_tests::noise;

use crate::round_trip::volume;

#[test]
fn clusters_and_namespaces_share_a_repository_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let whose: [&[&str]; 4] = [
        &["--cluster-id", "west"],
        &["--cluster-id", "east"],
        &["--cluster-id", "west", "--namespace", "prod"],
        &["--cluster-id", "west", "--namespace", "test"],
    ];
    let mut images = Vec::new();
    for (n, whose) in whose.iter().enumerate() {
        let image = folder.path().join(format!("image-{n}"));
        // The same content but for one MiB: nothing of it is shared.
        fs::write(&image, [noise(1 << 20, 9), noise(1 << 20, n as u64)].concat()).unwrap();
        let made = m.run([&["backup", "shop", "--volume", &volume(&image), "--json"], *whose].concat()).ok().json();
        assert_eq!(made["volumes"][0]["new_bytes"], 2 << 20, "{made}");
        images.push(image);
    }
    let out = folder.path().join("out");
    for (image, whose) in images.iter().zip(whose) {
        let _ = fs::remove_file(&out);
        m.run([&["restore", "shop", "--volume", &volume(&out)], whose].concat()).ok();
        assert!(fs::read(&out).unwrap() == fs::read(image).unwrap(), "{whose:?}");
        m.run([&["verify", "shop"], whose].concat()).ok();
        let listed = m.run([&["points", "shop", "--json"], whose].concat()).ok().json();
        assert_eq!(listed["points"].as_array().unwrap().len(), 1, "{listed}");
    }
    // At 3 a.m. on another machine: what there is, and how to name it.
    let listed = m.run(["points", "--json"]).ok().json();
    let shown: Vec<_> = listed["points"].as_array().unwrap().iter().map(|p| (&p["cluster"], &p["namespace"])).collect();
    assert_eq!(shown.len(), 4, "{listed}");
    assert_eq!((shown[1].0, shown[2].1), (&"east".into(), &"prod".into()));
    let missed = m.run(["restore", "shop", "--volume", &volume(&out)]);
    missed.fails(1, "shop (namespace prod, cluster west)");
    missed.fails(1, "--cluster-id");
    m.run(["backup", "shop", "--cluster-id", "a/b", "--volume", &volume(&out)]).fails(2, "not allowed in names");
}

#[test]
fn a_point_says_of_which_moments_its_volumes_are_and_what_it_has_not() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path()).aloud();
    m.run(["init"]).ok();
    let (data, wal) = (folder.path().join("data.img"), folder.path().join("wal.img"));
    fs::write(&data, noise(1 << 20, 1)).unwrap();
    fs::write(&wal, noise(1 << 20, 2)).unwrap();
    let volumes = [format!("data={}", data.display()), format!("wal={}", wal.display())];
    let base = ["backup", "shop", "--volume", &volumes[0], "--volume", &volumes[1]];
    let differ = "of different moments";
    let plain = m.run([&base[..], &["--json"]].concat()).ok();
    assert!(plain.json()["moments_differ"] == false && !plain.err.contains(differ), "{}", plain.err);
    let more = [
        "--taken",
        "data=2026-11-22T14:30:00Z",
        "--taken",
        "wal=2026-11-22T14:30:05Z",
        "--skip",
        "cache=it is made again",
        "--class",
        "weekly",
    ];
    let made = m.run([&base[..], &more].concat()).ok();
    assert!(made.err.contains(differ) && made.err.contains("cache was left out: it is made again"), "{}", made.err);
    let shown = m.run(["show", "shop", "--json"]).ok().json();
    let times: Vec<_> = shown["volumes"].as_array().unwrap().iter().map(|v| v["time"].clone()).collect();
    assert_eq!(times, ["2026-11-22T14:30:00.000Z", "2026-11-22T14:30:05.000Z"], "{shown}");
    assert_eq!(shown["class"], "weekly");
    assert_eq!(shown["skipped"][0]["name"], "cache");
    let text = m.run(["show", "shop"]).ok().out;
    assert!(text.contains(differ) && text.contains("cache was left out") && text.contains("weekly"), "{text}");
    let out = format!("data={}", folder.path().join("out").display());
    let restored = m.run(["restore", "shop", "--volume", &out]).ok();
    assert!(restored.err.contains(differ) && restored.err.contains("has no cache"), "{}", restored.err);
    m.run([&base[..], &["--taken", "other=2026-11-22T14:30:00Z"]].concat())
        .fails(2, "nothing that is backed up is called so");
    m.run([&base[..], &["--taken", "data=yesterday"]].concat()).fails(2, "write it like");
    m.run([&base[..], &["--skip", "data=why"]].concat()).fails(2, "to be left out");
    m.run([&base[..], &["--class", "often"]].concat()).fails(2, "hourly, daily");
}

#[test]
fn a_point_says_which_file_systems_its_volumes_hold() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
    milkrun_tests::device::must("mkfs.ext4", &["-q", "-L", "shop-data", &image.display().to_string()]);
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    let shown = m.run(["show", "shop", "--json"]).ok().json();
    let v = &shown["volumes"][0];
    assert_eq!((&v["file_system"], &v["file_system_label"]), (&"ext4".into(), &"shop-data".into()), "{shown}");
    assert!(m.run(["show", "shop"]).ok().out.contains("ext4 \"shop-data\""));
}
