//! Output for people and scripts: it is complete, or the command fails. Also: what comes from the environment.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use milkrun_tests::binary::{Milkrun, Ran, binary, ran};
use milkrun_tests::{is_root, noise, skip};

use crate::round_trip::volume;

fn world() -> (tempfile::TempDir, Milkrun) {
    let folder = tempfile::tempdir().unwrap();
    let m = Milkrun::in_folder(folder.path());
    m.run(["init"]).ok();
    let image = folder.path().join("image");
    fs::write(&image, noise(1 << 20, 1)).unwrap();
    m.run(["backup", "shop", "--volume", &volume(&image)]).ok();
    (folder, m)
}

fn to(mut command: Command, out: impl Into<Stdio>) -> Ran {
    let child = command.stdout(out).stderr(Stdio::piped()).spawn().unwrap();
    ran(child.wait_with_output())
}

#[test]
fn output_that_could_not_be_written_is_a_failure() {
    let (folder, m) = world();
    let image = volume(&folder.path().join("image"));
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let backup = ["backup", "shop", "--volume", image.as_str()];
    let cases: [&[&str]; 6] =
        [&["points"], &["points", "--json"], &["show", "shop"], &backup, &["completion", "bash"], &["--help"]];
    for args in cases {
        to(m.command(args), full()).fails(1, "can't write to standard output");
        let mut closed = Command::new("sh");
        closed.args(["-c", "exec \"$@\" >&-", "sh"]).arg(binary()).args(args);
        closed.envs(m.command(args).get_envs().filter_map(|(k, v)| Some((k, v?))));
        to(closed, Stdio::null()).fails(1, "standard output: it is closed");
        // A reader that closes the pipe is no failure.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        to(m.command(args), writer).ok();
    }
    // The command was carried out all the same.
    assert_eq!(m.run(["points", "--json"]).ok().json()["points"].as_array().unwrap().len(), 4);
    // The exit code for damage stays.
    fs::remove_dir_all(folder.path().join("repository/placements")).unwrap();
    to(m.command(["verify"]), full()).fails(3, "can't write to standard output");
}

#[test]
fn a_stream_to_an_output_that_takes_nothing_is_a_failure() {
    let (_folder, m) = world();
    let full = File::options().write(true).open("/dev/full").unwrap();
    to(m.command(["restore", "shop", "--stream", "data=-"]), full).fails(1, "No space left");
    let mut closed = Command::new("sh");
    closed.args(["-c", "exec \"$@\" >&- <&-", "sh"]).arg(binary());
    closed.envs(m.command(["points"]).get_envs().filter_map(|(k, v)| Some((k, v?))));
    let mut backup = Command::new("sh");
    backup.args(["-c", "exec \"$@\" <&-", "sh"]).arg(binary()).args(["backup", "shop", "--stream", "data=-"]);
    backup.envs(m.command(["points"]).get_envs().filter_map(|(k, v)| Some((k, v?))));
    to(backup, Stdio::null()).fails(2, "standard input is closed");
    closed.args(["restore", "shop", "--stream", "data=-"]);
    to(closed, Stdio::null()).fails(2, "standard output is closed");
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let (_folder, m) = world();
    let names = ["MILKRUN_COORDINATOR", "MILKRUN_TLS", "AWS_CA_BUNDLE", "MILKRUN_PASSWORD_FILE", "MILKRUN_LOG"];
    let mut command = m.command(["points"]);
    for name in names {
        command.env(name, "");
    }
    ran(command.output()).ok();
    let mut no_home = m.command(["verify"]);
    for name in ["MILKRUN_CACHE", "XDG_CACHE_HOME", "HOME"] {
        no_home.env(name, "");
    }
    ran(no_home.output()).ok();
    let mut none = m.command(["points"]);
    ran(none.env("MILKRUN_REPOSITORY", "").output()).fails(2, "repository");
}

#[test]
fn what_goes_to_a_file_has_no_colours() {
    let (_folder, m) = world();
    let ran = ran(m.command(["points"]).env("MILKRUN_LOG", "trace").output());
    assert!(ran.err.contains("DEBUG") || ran.err.contains("TRACE"), "{}", ran.err);
    assert!(!ran.err.contains('\x1b'), "{}", ran.err);
}

#[test]
fn too_few_threads_are_an_error_and_no_panic() {
    if !is_root() {
        return skip("a bound on threads", "needs root, to become somebody else");
    }
    let (folder, m) = world();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.path().join("milkrun");
    fs::copy(binary(), &copy).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=64123", "--regid=64123", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
    command.args(["prlimit", "--nproc=5:5"]).arg(&copy).args(["points"]);
    command.envs(m.command(["points"]).get_envs().filter_map(|(k, v)| Some((k, v?))));
    ran(command.output()).fails(1, "ulimit -u");
}

/// Closing the terminal stops a run like Ctrl-C does, and nothing is left behind. Under nohup the run goes on.
#[test]
fn a_hangup_stops_a_run_cleanly() {
    let (folder, _) = world();
    let leases = || fs::read_dir(folder.path().join("repository/leases")).map_or(0, Iterator::count);
    for nohup in [false, true] {
        // The tests themselves may run under `nohup`.
        let under: &[&str] = if nohup { &["nohup"] } else { &["env", "--default-signal=HUP"] };
        let m = Milkrun::in_folder(folder.path()).under(under.iter().map(|&word| word.into()).collect());
        let mut command = m.command(["backup", "stream", "--stream", "d=-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(&noise(1 << 20, 1)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while leases() == 0 {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(20));
        }
        // The run is announced shortly after its lease is taken.
        std::thread::sleep(Duration::from_millis(500));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
        if nohup {
            std::thread::sleep(Duration::from_millis(500));
        } else {
            // Its standard input stays open, so that only the signal ends it.
            let deadline = Instant::now() + Duration::from_secs(60);
            while child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < deadline, "it goes on");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        drop(pipe);
        let ran = ran(child.wait_with_output());
        assert_eq!(ran.code, Some(if nohup { 0 } else { 1 }), "{}", ran.err);
        assert_eq!(leases(), 0, "its lease stays: {}", ran.err);
    }
}
