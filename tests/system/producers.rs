//! Streams whose producer fails, writes nothing, or writes to a file while it is read: there is no restore point.

use std::fs::{self, OpenOptions};
use std::io::Write;

use milkrun_tests::binary::{Milkrun, ran};
use milkrun_tests::noise;

use crate::round_trip::volume;

fn world() -> (tempfile::TempDir, Milkrun) {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    (folder, m)
}

fn points(m: &Milkrun) -> usize {
    m.run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len()
}

#[test]
fn a_command_that_fails_makes_no_point() {
    let (folder, m) = world();
    let data = folder.path().join("data");
    fs::write(&data, noise(40 << 20, 1)).unwrap();
    let cat = format!("cat {}", data.display());
    for (command, why) in [
        ("(echo part; echo no table >&2; exit 3)", "it said: no table"),
        ("echo part; exit 3", "exit code 3"),
        ("(echo part; exit 1) | cat", "exit code 1"),
        ("/no/such/dump", "exit code 127"),
        ("kill -9 $$", "signal 9"),
        (&format!("{cat}; exit 1"), "exit code 1"),
    ] {
        m.run(["backup", "db", "--stream-command", &format!("dump={command}")]).fails(1, why);
        assert_eq!(points(&m), 0);
    }
    let made = m.run(["backup", "db", "--stream-command", &format!("dump={cat}; echo all is well >&2")]).ok();
    assert!(made.err.contains("all is well"), "what a command says is shown: {}", made.err);
    let back = folder.path().join("back");
    m.run(["restore", "db", "--stream", &format!("dump={}", back.display())]).ok();
    assert!(fs::read(back).unwrap() == noise(40 << 20, 1));
    m.run(["backup", "db", "--stream-command", "a=true", "--stream", "a=-"]).fails(2, "named twice");
    m.run(["backup", "db", "--stream-command", "a=true", "--coordinator", "https://127.0.0.1:1"])
        .fails(2, "leave out a");
}

#[test]
fn sources_without_a_byte_are_refused_unless_they_are_meant() {
    let (folder, m) = world();
    let empty = folder.path().join("empty");
    fs::write(&empty, "").unwrap();
    for words in [["--stream-command", "data=true"], ["--stream", "data=-"], ["--volume", &volume(&empty)]] {
        let words = ["backup", "db"].into_iter().chain(words).collect::<Vec<_>>();
        m.run(&words).fails(1, "--allow-empty");
        assert_eq!(points(&m), 0);
    }
    m.run(["backup", "db", "--volume", &volume(&empty), "--allow-empty"]).ok();
    assert_eq!(points(&m), 1);
}

#[test]
fn a_stream_file_that_changes_while_it_is_read_is_refused() {
    let (folder, m) = world();
    let file = folder.path().join("dump");
    fs::write(&file, noise(200 << 20, 1)).unwrap();
    let v = volume(&file);
    for allow in [None, Some("--allow-changing")] {
        let mut backup = m.command(["backup", "db", "--stream", &v].into_iter().chain(allow));
        let child = backup.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        // The file is written each millisecond while it is read: at least one write comes between its first byte and
        // its last.
        let mut writer = OpenOptions::new().append(true).open(&file).unwrap();
        let mut child = child;
        while child.try_wait().unwrap().is_none() {
            writer.write_all(b"more").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let ran = ran(child.wait_with_output());
        match allow {
            None => ran.fails(1, "changed while it was read"),
            Some(_) => assert!(ran.ok().err.contains("changed while it was read")),
        }
    }
}
