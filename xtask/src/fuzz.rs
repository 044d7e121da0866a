//! Coverage-guided fuzzing of every decoder, with the stable toolchain (see `fuzz/`).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::{cargo, exists, root, run, say, target};

/// Targets that run at once: as many as the smallest machine has cores.
const AT_ONCE: usize = 2;

/// A fuzz target that runs.
struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        // If it has ended, this does nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether fuzzing can run here.
pub(crate) fn possible() -> bool {
    exists("c++")
}

/// Fuzzes each target for so many seconds. The corpus stays in `target/fuzz`, and the next run begins with it.
pub(crate) fn run_all(seconds: u32) -> Result<(), String> {
    if !possible() {
        return Err("libFuzzer needs a C++ compiler".into());
    }
    let wrapper = root().join("fuzz/with-coverage");
    run(cargo()
        .args([
            "build",
            "--workspace",
            "--features",
            "milkrun-cli/faults,milkrun-fuzz/libfuzzer",
            "--example",
            "libfuzzer",
        ])
        .env("RUSTC_WORKSPACE_WRAPPER", wrapper.canonicalize().map_err(|e| format!("{}: {e}", wrapper.display()))?))?;
    let program = target().join("debug/examples/libfuzzer");
    let folder = target().join("fuzz");
    let seeds = folder.join("samples");
    let listed = Command::new(&program).env("MILKRUN_FUZZ_SEEDS", &seeds).stderr(Stdio::null()).output();
    let listed = listed.map_err(|e| format!("{}: {e}", program.display()))?;
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut waiting: Vec<&str> = names.lines().rev().collect();
    if waiting.is_empty() {
        return Err("the fuzzer knows no target".into());
    }
    say(&format!("xtask: fuzzing {} decoders, {seconds} s each", waiting.len()));
    let mut running: Vec<Running> = Vec::new();
    let mut failed = Vec::new();
    while !waiting.is_empty() || !running.is_empty() {
        while running.len() < AT_ONCE
            && let Some(name) = waiting.pop()
        {
            running.push(start(&program, &folder, name, seconds)?);
        }
        let mut at = 0;
        while at < running.len() {
            match running[at].child.try_wait() {
                Ok(None) => at += 1,
                ended => {
                    let done = running.swap_remove(at);
                    let text = std::fs::read_to_string(&done.log).unwrap_or_default();
                    let last =
                        |start: &str| text.lines().rev().find(|l| l.contains(start)).unwrap_or_default().to_owned();
                    if ended.is_ok_and(|s| s.is_some_and(|s| s.success())) {
                        say(&format!("  {}: {}", done.name, last("Done ")));
                    } else {
                        say(&format!(
                            "  {}: FAILED\n{}\n{}",
                            done.name,
                            last("panicked at"),
                            last("Test unit written")
                        ));
                        failed.push(done.name.clone());
                    }
                }
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("fuzzing found something in {}", failed.join(", "))) }
}

fn start(program: &Path, folder: &Path, name: &str, seconds: u32) -> Result<Running, String> {
    let make = |sub: &str| {
        let path = folder.join(sub).join(name);
        std::fs::create_dir_all(&path).map(|()| path).map_err(|e| format!("{sub}/{name}: {e}"))
    };
    let (corpus, samples, artifacts) = (make("corpus")?, make("samples")?, make("found")?);
    let log = folder.join(format!("{name}.log"));
    let out = std::fs::File::create(&log).map_err(|e| format!("{}: {e}", log.display()))?;
    let child = Command::new(program)
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=60", "-rss_limit_mb=2048"])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .args([&corpus, &samples])
        .env("MILKRUN_FUZZ_TARGET", name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(out)
        .spawn()
        .map_err(|e| format!("{}: {e}", program.display()))?;
    Ok(Running { name: name.to_owned(), child, log })
}
