//! Images of tests, made from programs of this machine: no registry, no Docker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::process::{run, words};

/// What each pod's sandbox runs: a process that waits.
const PAUSE: &str = "#include <signal.h>\n#include <sys/wait.h>\n#include <unistd.h>\nstatic void end(int s) { _exit(0); }\nint main(void) { signal(SIGTERM, end); signal(SIGINT, end); for (;;) { pause(); while (waitpid(-1, 0, WNOHANG) > 0) {} } }\n";

/// The programs of milkrun's image.
const PROGRAMS: [&str; 4] = ["milkrun", "milkrun-agent", "milkrun-coordinator", "milkrun-operator"];

/// An image: its name, and the command that its containers run.
struct Image<'a> {
    name: &'a str,
    command: &'a [&'a str],
}

/// Makes the images that each node has: `milkrun.test/pause:1` and `milkrun.test/busybox:1`. Returns the archives.
pub(crate) fn base(folder: &Path) -> Result<Vec<PathBuf>> {
    let (pause, busybox) = (folder.join("pause.tar"), folder.join("busybox.tar"));
    if !pause.exists() {
        archive(&pause, &Image { name: "milkrun.test/pause:1", command: &["/pause"] }, |root| {
            let source = root.with_extension("c");
            fs::write(&source, PAUSE).map_err(|e| e.to_string())?;
            let line = format!("cc -static -Os -s -o {} {}", root.join("pause").display(), source.display());
            run(&mut words(&line)).map(drop)
        })?;
    }
    if !busybox.exists() {
        archive(&busybox, &Image { name: "milkrun.test/busybox:1", command: &["/bin/sh"] }, |root| {
            for folder in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
                fs::create_dir_all(root.join(folder)).map_err(|e| e.to_string())?;
            }
            fs::copy("/bin/busybox", root.join("bin/busybox")).map_err(|e| format!("/bin/busybox: {e}"))?;
            // In a chroot, so that the links that it makes are right.
            run(Command::new("chroot").arg(root).args(["/bin/busybox", "--install", "-s", "/bin"])).map(drop)
        })?;
    }
    Ok(vec![pause, busybox])
}

/// Makes milkrun's own image of its programs in a folder, with the libraries that they need and no shell.
///
/// # Errors
/// With a text for a person.
pub fn milkrun(programs: &Path, name: &str, target: &Path) -> Result<()> {
    archive(target, &Image { name, command: &["/milkrun"] }, |root| {
        for program in PROGRAMS {
            copy(&programs.join(program), &root.join(program))?;
            // `libc.so.6 => /lib/… (0x…)`, and the loader by its path.
            for line in run(Command::new("ldd").arg(programs.join(program)))?.lines() {
                let path = line.split_whitespace().find(|word| word.starts_with('/'));
                if let Some(path) = path {
                    copy(Path::new(path), &root.join(path.trim_start_matches('/')))?;
                }
            }
        }
        let certificates = Path::new("/etc/ssl/certs/ca-certificates.crt");
        if certificates.exists() {
            copy(certificates, &root.join("etc/ssl/certs/ca-certificates.crt"))?;
        }
        fs::create_dir_all(root.join("tmp")).map_err(|e| e.to_string())
    })
}

/// Copies a file, if it is not there yet, and makes the folders above it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    let failed = |e: std::io::Error| format!("{}: {e}", from.display());
    to.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
    fs::copy(from, to).map(drop).map_err(failed)
}

/// Writes an archive as `docker save` does: one layer, the configuration, the manifest.
fn archive(target: &Path, image: &Image<'_>, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let work = target.with_extension("work");
    let _ = fs::remove_dir_all(&work);
    let root = work.join("root");
    fs::create_dir_all(&root).map_err(|e| format!("{}: {e}", root.display()))?;
    fill(&root)?;
    let tar = |out: &Path, from: &Path, what: &[&str]| {
        let fixed = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"];
        run(Command::new("tar").args(fixed).arg("-cf").arg(out).arg("-C").arg(from).args(what))
    };
    tar(&work.join("layer.tar"), &root, &["."])?;
    let digest = run(Command::new("sha256sum").arg(work.join("layer.tar")))?;
    let digest = digest.split_whitespace().next().unwrap_or_default();
    let command: Vec<String> = image.command.iter().map(|word| format!("{word:?}")).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{"Entrypoint":[{}],"Env":["PATH=/usr/bin:/bin"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#,
        command.join(",")
    );
    let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{}"],"Layers":["layer.tar"]}}]"#, image.name);
    for (file, text) in [("config.json", config), ("manifest.json", manifest)] {
        fs::write(work.join(file), text).map_err(|e| format!("{file}: {e}"))?;
    }
    tar(target, &work, &["config.json", "manifest.json", "layer.tar"])?;
    fs::remove_dir_all(&work).map_err(|e| format!("{}: {e}", work.display()))
}
