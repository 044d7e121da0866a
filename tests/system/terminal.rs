//! What a person sees and does while a command runs: bars on a terminal, lines elsewhere, Ctrl-C. Also: `milkrun try`,
//! help and completion.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use milkrun_tests::binary::{Milkrun, ran};
use milkrun_tests::noise;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::crash_points::points;
use crate::round_trip::volume;

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
}

fn wait_until(what: &str, limit: u64, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(limit), "{what} did not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for the result of a process, and fails if it still runs then. It is killed in that case.
fn end_of(mut child: Child, seconds: u64) -> milkrun_tests::binary::Ran {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let in_time = child.try_wait().unwrap().is_some();
    if !in_time {
        child.kill().unwrap();
    }
    let ran = ran(child.wait_with_output());
    assert!(in_time, "still running after {seconds} s: {ran:?}");
    ran
}

/// On a pipe, a plain line is printed now and then. The first Ctrl-C stops the run cleanly.
#[test]
fn a_backup_reports_progress_and_stops_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path()).aloud();
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(100 << 20, 1)).unwrap();
    let log = folder.path().join("log");
    let mut command = m.command(["backup", "shop", "--volume", &volume(&image), "--limit-upload", "3MiB"]);
    let child = command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    wait_until("a line of progress", 40, || fs::read_to_string(&log).unwrap().contains("data: "));
    let line = fs::read_to_string(&log).unwrap();
    assert!(line.contains(" of 100.00 MiB, ") && line.contains("/s") && !line.contains('\r'), "{line}");
    interrupt(&child);
    let ended = end_of(child, 30);
    let text = fs::read_to_string(&log).unwrap();
    assert_eq!(ended.code, Some(1), "{text}");
    assert!(text.contains("once more to stop at once") && text.contains("nothing was committed"), "{text}");
    assert_eq!(points(&m).len(), 0);
    // The next backup finds the chunks that were stored until then, and its point is whole.
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    m.run(["verify", "--data"]).ok();
}

#[test]
fn a_restore_that_is_stopped_leaves_no_half_volume() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(300 << 20, 2)).unwrap();
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    let out = folder.path().join("out");
    // The name of the unfinished file ends with the attempt's.
    let partial = || {
        let mut files = fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().path());
        files.find(|f| f.file_name().unwrap().to_string_lossy().starts_with("out.milkrun-partial"))
    };
    let child = m
        .command(["restore", "shop", "--volume", &volume(&out)])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The restore is under way: something is written.
    let begun = || partial().is_some_and(|p| fs::metadata(p).is_ok_and(|f| f.blocks() > 0));
    wait_until("the first bytes", 60, begun);
    interrupt(&child);
    let ended = end_of(child, 30);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.err.contains("the targets are not complete"), "{}", ended.err);
    assert!(!out.exists() && partial().is_none(), "something was left");
}

/// The clean stop hangs (on purpose, see [`milkrun_repository::crash`]); the second Ctrl-C does not wait for it.
#[test]
fn the_second_interrupt_stops_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path()).aloud().env("MILKRUN_HANG_AT", "before stopping");
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(20 << 20, 3)).unwrap();
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    let log = folder.path().join("log");
    let mut command = m.command(["restore", "shop", "--stream", "data=-"]);
    // Nobody reads the pipe, so the command does not end.
    let mut child = command.stdout(Stdio::piped()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    interrupt(&child);
    wait_until("the first answer", 20, || fs::read_to_string(&log).unwrap().contains("once more to stop at once"));
    // Longer than the time in which two signals count as one, and shorter than the limit for a clean stop.
    std::thread::sleep(Duration::from_secs(2));
    assert!(child.try_wait().unwrap().is_none(), "the clean stop did not hang: {}", fs::read_to_string(&log).unwrap());
    interrupt(&child);
    assert_eq!(end_of(child, 3).code, Some(1));
}

#[test]
fn bars_are_drawn_on_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path()).aloud();
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(20 << 20, 4)).unwrap();
    // Processes of other tests must not inherit it, or the terminal would never close.
    let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY | nix::fcntl::OFlag::O_CLOEXEC;
    let terminal = nix::pty::posix_openpt(flags).unwrap();
    nix::pty::grantpt(&terminal).unwrap();
    nix::pty::unlockpt(&terminal).unwrap();
    let other_side = fs::File::options().read(true).write(true).open(nix::pty::ptsname_r(&terminal).unwrap()).unwrap();
    let mut command = m.command(["backup", "shop", "--volume", &volume(&image), "--limit-upload", "8MiB"]);
    command.stdout(Stdio::null()).stderr(Stdio::from(other_side)).env("TERM", "xterm").env("COLUMNS", "100");
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut terminal = terminal;
    let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
    // The read fails once the other side is closed.
    while let Ok(n @ 1..) = terminal.read(&mut piece) {
        seen.extend_from_slice(&piece[..n]);
    }
    assert!(child.wait().unwrap().success());
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("data [") && seen.contains("20.00 MiB") && seen.contains("left"), "{seen}");
}

#[test]
fn the_try_command() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    let run = |place: &str, paths: &[&Path]| {
        let place = folder.path().join(place).display().to_string();
        let paths = paths.iter().map(|p| p.display().to_string());
        let args = ["try", "--json", "--folder", &place].map(str::to_owned).into_iter().chain(paths);
        m.run(args)
    };
    let sample = run("sample", &[]).ok().json();
    assert_eq!((&sample["identical"], &sample["findings"]), (&true.into(), &serde_json::json!([])), "{sample}");
    let stored = |backup: usize| sample["backups"][backup]["stored_bytes"].as_u64().unwrap();
    assert!(stored(1) * 10 < stored(0), "a few pages changed: {sample}");
    let restored = folder.path().join("sample/restored");
    assert!(fs::read(restored.join("data.img")).unwrap() == fs::read(folder.path().join("sample/data.img")).unwrap());
    assert!(restored.join("manifests").read_dir().unwrap().count() >= 3);

    // What the user names is only read.
    let image = folder.path().join("mine");
    fs::write(&image, noise(5 << 20, 5)).unwrap();
    let before = fs::metadata(&image).unwrap().modified().unwrap();
    let mine = run("named", &[&image]).ok().json();
    assert_eq!(mine["backups"][1]["volumes"][0]["new_bytes"], 0, "{mine}");
    assert_eq!(fs::metadata(&image).unwrap().modified().unwrap(), before);
    assert!(fs::read(folder.path().join("named/restored/mine.img")).unwrap() == noise(5 << 20, 5));
    // A second time in the same folder: nothing is overwritten.
    run("named", &[&image]).fails(2, "choose another --folder");
}

#[test]
fn help_and_completion() {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    for shell in ["bash", "zsh", "fish"] {
        let script = m.run(["completion", shell]).ok().out;
        assert!(script.contains("milkrun") && script.contains("restore"), "{shell}: {script}");
    }
    for command in ["init", "backup", "points", "show", "restore", "verify", "try", "completion"] {
        let help = m.run([command, "--help"]).ok().out;
        assert!(help.contains("Examples:") && help.contains(&format!("milkrun {command}")), "{help}");
    }
}
