//! Freezing mounted file systems: nobody writes meanwhile, and a thaw depends on nobody.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use milkrun_agent::device::allowed::AllowedPaths;
use milkrun_agent::freeze::{FreezeError, Freezer};
use milkrun_tests::device::{Loop, Mount, must};
use milkrun_tests::{is_root, skip};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// Writes a file on a thread of its own: a writer of a frozen file system can't be stopped. The receiver gets a word once it is
/// written.
fn write(at: &Path, name: &str) -> Receiver<()> {
    let (sender, written) = channel();
    let file = at.join(name);
    std::thread::spawn(move || {
        fs::write(file, "written").unwrap();
        // A test that failed does not listen any more.
        let _ = sender.send(());
    });
    written
}

fn waits(writer: &Receiver<()>) -> bool {
    writer.recv_timeout(Duration::from_millis(500)).is_err()
}

fn with_file_system(test: &str, kind: &str, work: impl FnOnce(&Path, PathBuf)) {
    if !is_root() {
        return skip(test, "loop devices need root");
    }
    let folder = tempfile::tempdir().unwrap();
    let device = Loop::fresh(folder.path(), "disk.img", 400 << 20);
    must(&format!("mkfs.{kind}"), &["-q", &device.path()]);
    let mount = Mount::new(&device.path(), &folder.path().join("mnt"), &[]);
    work(mount.path(), folder.path().join("notes"));
}

fn notes(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

/// Waits until no note is left: another process's note goes a moment after the thaw that lets its writers go on.
fn wait_for_no_notes(folder: &Path) {
    let began = Instant::now();
    while notes(folder) > 0 {
        assert!(began.elapsed() < LONG, "a note of what is thawed is still there");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn writers_wait_until_it_is_thawed() {
    for kind in ["ext4", "xfs"] {
        with_file_system("writers_wait_until_it_is_thawed", kind, |mount, folder| {
            let freezer = Freezer::new(AllowedPaths::Any, Some(folder.clone()));
            freezer.freeze(b"run", mount, LONG).unwrap();
            // Asking again changes nothing; another run is refused.
            freezer.freeze(b"run", mount, LONG).unwrap();
            let other = freezer.freeze(b"other", mount, LONG).unwrap_err();
            assert!(
                matches!(&other, FreezeError::Freeze { source, .. } if source.to_string().contains("somebody else"))
            );
            let writer = write(mount, "during");
            assert!(waits(&writer), "{kind}: it was written while it was frozen");
            assert_eq!(notes(&folder), 1);
            let thawed = freezer.thaw(b"run", mount).unwrap();
            writer.recv_timeout(LONG).unwrap();
            assert!(!thawed.early && thawed.held >= Duration::from_millis(500), "{kind}: {thawed:?}");
            // An answer that was lost is given again.
            assert_eq!(freezer.thaw(b"run", mount), Some(thawed));
            assert_eq!(freezer.thaw(b"third", mount), None);
            let late = freezer.freeze(b"third", mount, LONG).unwrap_err();
            assert!(matches!(late, FreezeError::Over { .. }), "a freeze that comes after its thaw: {late}");
            assert_eq!(notes(&folder), 0);
            let again = freezer.freeze(b"run", mount, LONG).unwrap_err();
            assert!(matches!(again, FreezeError::Over { .. }), "{again}");
            // The next run may.
            freezer.freeze(b"next", mount, LONG).unwrap();
            freezer.close();
            let late = freezer.freeze(b"late", mount, LONG).unwrap_err();
            assert!(matches!(late, FreezeError::Stopping), "{late}");
            write(mount, "after").recv_timeout(LONG).unwrap();
        });
    }
}

#[test]
fn it_is_thawed_when_its_time_is_over_and_that_is_said() {
    with_file_system("it_is_thawed_when_its_time_is_over_and_that_is_said", "ext4", |mount, folder| {
        let freezer = Freezer::new(AllowedPaths::Any, Some(folder));
        let began = Instant::now();
        freezer.freeze(b"run", mount, Duration::from_secs(2)).unwrap();
        write(mount, "during").recv_timeout(LONG).unwrap();
        assert!(began.elapsed() >= Duration::from_secs(2));
        let thawed = freezer.thaw(b"run", mount).unwrap();
        assert!(thawed.early, "{thawed:?}");
    });
}

#[test]
fn what_a_process_left_frozen_the_next_one_thaws() {
    with_file_system("what_a_process_left_frozen_the_next_one_thaws", "xfs", |mount, folder| {
        let first = Freezer::new(AllowedPaths::Any, Some(folder.clone()));
        first.freeze(b"run", mount, LONG).unwrap();
        let writer = write(mount, "during");
        assert!(waits(&writer));
        // It finds the file system where it is mounted now.
        let elsewhere = mount.parent().unwrap().join("else where");
        fs::create_dir(&elsewhere).unwrap();
        must("mount", &["--bind", mount.to_str().unwrap(), elsewhere.to_str().unwrap()]);
        let note = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        let text = fs::read_to_string(&note).unwrap();
        fs::write(&note, text.replace(mount.to_str().unwrap(), "/nowhere")).unwrap();
        let next = Freezer::new(AllowedPaths::Any, Some(folder.clone()));
        writer.recv_timeout(LONG).unwrap();
        wait_for_no_notes(&folder);
        assert_eq!(next.thaw(b"run", mount), None, "the next process knows of no freeze, so the run is void");
        assert!(first.thaw(b"run", mount).unwrap().early);
        must("umount", &[elsewhere.to_str().unwrap()]);
    });
}

#[test]
fn what_has_no_file_system_of_its_own_is_not_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let freezer = Freezer::new(AllowedPaths::Any, Some(folder.path().join("notes")));
    let shared = freezer.freeze(b"run", folder.path(), LONG).unwrap_err();
    assert!(matches!(shared, FreezeError::Shared { .. }), "{shared}");
    // Without a folder for notes, nothing is frozen.
    let proc = Path::new("/proc");
    let without = Freezer::new(AllowedPaths::Any, None).freeze(b"run", proc, LONG).unwrap_err();
    assert!(matches!(without, FreezeError::NoNotes), "{without}");
    if is_root() {
        let kind = freezer.freeze(b"run", proc, LONG).unwrap_err();
        let unsupported = std::io::ErrorKind::Unsupported;
        assert!(matches!(&kind, FreezeError::Freeze { source, .. } if source.kind() == unsupported), "{kind}");
    }
    assert_eq!(notes(&folder.path().join("notes")), 0);
}
