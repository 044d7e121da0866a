//! A repository that is valid by itself but not the one of before: it was rolled back as a whole, or exchanged for
//! another.

use std::fs;
use std::path::Path;

use milkrun_tests::binary::Milkrun;
use milkrun_tests::device::must;
use milkrun_tests::noise;

use crate::round_trip::volume;

fn copy(from: &Path, to: &Path) {
    must("cp", &["-a", &from.display().to_string(), &to.display().to_string()]);
}

#[test]
fn a_repository_of_an_earlier_day_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let (image, repository) = (folder.path().join("image"), folder.path().join("repository"));
    let back_up = |n: u64| {
        fs::write(&image, noise(1 << 20, n)).unwrap();
        m.run(["backup", "shop", "--volume", &volume(&image), "--json"])
    };
    back_up(1).ok();
    copy(&repository, &folder.path().join("yesterday"));
    let newest = back_up(2).ok().json()["point"].as_str().unwrap().to_owned();
    fs::remove_dir_all(&repository).unwrap();
    copy(&folder.path().join("yesterday"), &repository);

    back_up(3).fails(3, &format!("{newest} was in this repository"));
    let points = m.run(["points"]).ok();
    assert!(points.err.contains("rolled back") && points.err.contains(&newest), "{}", points.err);
    // Its points can be restored, with a warning that they are not the newest.
    let out = folder.path().join("out");
    let restored = m.run(["restore", "shop", "--volume", &volume(&out)]).ok();
    assert!(restored.err.contains("rolled back"), "{}", restored.err);
    assert!(fs::read(&out).unwrap() == noise(1 << 20, 1));
    // If the rollback was intended, a person removes the record that the message names.
    let ran = back_up(3);
    let record = ran.err.split("remove \"").nth(1).unwrap().split('"').next().unwrap();
    fs::remove_file(record).unwrap();
    back_up(3).ok();
}

#[test]
fn another_repository_with_the_same_password_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(1 << 20, 1)).unwrap();
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    let other = Milkrun::at(&format!("file://{}/other", folder.path().display()), folder.path());
    other.run(["init"]).ok();
    for name in ["repository.json", "keys"] {
        must("rm", &["-r", &folder.path().join("repository").join(name).display().to_string()]);
        copy(&folder.path().join("other").join(name), &folder.path().join("repository").join(name));
    }
    m.run(["backup", "shop", "--volume", &volume(&image)]).fails(3, "it was exchanged");
    assert!(m.run(["points"]).ok().err.contains("it was exchanged"));
}

/// `shop@TIME` without a fraction means all of that second, as ids show it.
#[test]
fn a_time_without_a_fraction_means_its_whole_second() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(1 << 20, 1)).unwrap();
    let made = m.run(["backup", "shop", "--volume", &volume(&image), "--json"]).ok().json();
    let time = made["time"].as_str().unwrap();
    let second = format!("{}Z", &time[..19]);
    let shown = m.run(["show", &format!("shop@{second}"), "--json"]).ok().json();
    assert_eq!(shown["point"], made["point"]);
}
