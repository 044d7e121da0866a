//! The programs of a cluster, built from the Go module that pins them.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::Result;
use crate::process::run;

/// The module that the snapshot controller's resource definitions come from.
const SNAPSHOT_DEFINITIONS: &str = "github.com/kubernetes-csi/external-snapshotter/client/v8";

/// Programs of a cluster that are built.
#[derive(Debug, Clone)]
pub struct Programs {
    folder: PathBuf,
    /// Kubernetes' own programs of an older version; they count before those of `folder`.
    older: Option<PathBuf>,
}

impl Programs {
    /// The path of a program.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        let older = self.older.as_ref().map(|folder| folder.join(program)).filter(|path| path.exists());
        older.unwrap_or_else(|| self.folder.join(program))
    }

    /// The folder of the resource definitions that the snapshot controller needs.
    #[must_use]
    pub fn definitions(&self) -> PathBuf {
        self.folder.join("definitions")
    }

    /// A folder for what is made once from the programs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The programs below `target` that were built from the module's present pins, if they were. `version`: an older Kubernetes.
    ///
    /// # Errors
    /// If the module can't be read, or there is no such version.
    pub fn built(module: &Path, target: &Path, version: Option<&str>) -> Result<Option<Self>> {
        let complete = |folder: &PathBuf| folder.join("complete").exists();
        let older = version.map(|version| folder(&older(module, version)?, target)).transpose()?;
        let programs = Self { folder: folder(module, target)?, older };
        Ok((complete(&programs.folder) && programs.older.as_ref().is_none_or(complete)).then_some(programs))
    }
}

/// The module of an older Kubernetes.
fn older(module: &Path, version: &str) -> Result<PathBuf> {
    let folder = module.join(version);
    let there = version.starts_with("1.") && folder.join("go.mod").exists();
    if there { Ok(folder) } else { Err(format!("there is no Kubernetes {version} in {}", module.display())) }
}

/// Where the programs of this module lie: what is built from other pins lies elsewhere.
fn folder(module: &Path, target: &Path) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    for file in ["go.mod", "go.sum"] {
        read(&module.join(file))?.hash(&mut hasher);
    }
    for own in ["coredns/main.go", "registrar/main.go"] {
        if module.join(own).exists() {
            read(&module.join(own))?.hash(&mut hasher);
        }
    }
    Ok(target.join("cluster").join(format!("programs-{:016x}", hasher.finish())))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Builds what is not built yet. `say` is called with a line for each program. `version`: an older Kubernetes.
///
/// # Errors
/// If Go is missing, or a program can't be built.
pub fn build(module: &Path, target: &Path, version: Option<&str>, say: &mut dyn FnMut(&str)) -> Result<Programs> {
    let folder = build_module(module, target, say)?;
    if !folder.join("definitions").exists() {
        copy_definitions(module, &folder)?;
    }
    let older = version.map(|version| build_module(&older(module, version)?, target, say)).transpose()?;
    Ok(Programs { folder, older })
}

/// Builds the programs of one module. Returns their folder.
fn build_module(module: &Path, target: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let folder = folder(module, target)?;
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let folder = folder.canonicalize().map_err(|e| format!("{}: {e}", folder.display()))?;
    if folder.join("complete").exists() {
        return Ok(folder);
    }
    let text = read(&module.join("go.mod"))?;
    let flags = linker_flags(&text)?;
    for (package, program) in programs(&text) {
        let began = Instant::now();
        let mut command = go(module);
        command.args(["build", "-trimpath", "-ldflags", &flags, "-o"]).arg(folder.join(&program)).arg(&package);
        run(&mut command)?;
        say(&format!("cluster: built {program} in {} s", began.elapsed().as_secs()));
    }
    fs::write(folder.join("complete"), "").map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(folder)
}

fn go(module: &Path) -> Command {
    let installed = Path::new("/usr/local/go/bin/go");
    let mut command = Command::new(if installed.exists() { installed } else { Path::new("go") });
    command.current_dir(module).env("GOTOOLCHAIN", "local").env("GOFLAGS", "-mod=mod").env("CGO_ENABLED", "0");
    command
}

/// The `tool` lines of a `go.mod`: package, and the name of its program.
fn programs(text: &str) -> Vec<(String, String)> {
    let block = text.split_once("tool (").and_then(|(_, rest)| rest.split_once(')')).map_or("", |(block, _)| block);
    let named = |package: &str| {
        let last = package.rsplit('/').find(|part| !part.starts_with('v') || part.len() > 2);
        // etcd's program is the root of its module.
        if last == Some("server") { "etcd".to_owned() } else { last.unwrap_or(package).to_owned() }
    };
    block.split_whitespace().map(|package| (package.to_owned(), named(package))).collect()
}

/// Kubernetes' programs learn their version from the linker; without it the API server says v0.0.0.
fn linker_flags(text: &str) -> Result<String> {
    let version = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"))
        .and_then(|rest| rest.split_whitespace().next())
        .ok_or("go.mod names no version of k8s.io/kubernetes")?;
    let parts: Vec<&str> = version.split('.').collect();
    let [major, minor, ..] = parts[..] else { return Err(format!("{version} is no version")) };
    let package = "k8s.io/component-base/version";
    let values =
        BTreeMap::from([("gitVersion", format!("v{version}")), ("gitMajor", major.into()), ("gitMinor", minor.into())]);
    let set: Vec<String> = values.iter().map(|(name, value)| format!("-X {package}.{name}={value}")).collect();
    Ok(format!("-s -w {}", set.join(" ")))
}

fn copy_definitions(module: &Path, folder: &Path) -> Result<()> {
    let source = run(go(module).args(["list", "-m", "-f", "{{.Dir}}", SNAPSHOT_DEFINITIONS]))?;
    let source = Path::new(source.trim()).join("config/crd");
    let target = folder.join("definitions");
    fs::create_dir_all(&target).map_err(|e| format!("{}: {e}", target.display()))?;
    let entries = fs::read_dir(&source).map_err(|e| format!("{}: {e}", source.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_owned();
        if name.to_string_lossy().contains(".k8s.io_") {
            // Files of Go's module cache are read-only, copies of them should not be.
            fs::write(target.join(name), read(&path)?).map_err(|e| format!("{}: {e}", target.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "module x\n\ntool (\n\tgithub.com/a/csi-attacher/v4/cmd/csi-attacher\n\tgo.etcd.io/etcd/server/v3\n)\n\nrequire (\n\tk8s.io/kubernetes v1.37.2 // indirect\n)\n";

    #[test]
    fn each_tool_line_is_a_program() {
        let named = programs(MODULE);
        let names: Vec<&str> = named.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["csi-attacher", "etcd"]);
    }

    #[test]
    fn the_version_is_linked_in() {
        let flags = linker_flags(MODULE).unwrap();
        assert!(flags.ends_with("version.gitVersion=v1.37.2"), "{flags}");
        assert!(flags.contains("version.gitMinor=37"), "{flags}");
        assert!(linker_flags("module x").is_err());
    }
}
