//! `milkrun try`: backup, restore and verification of a sample application, or of files that the user names.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use milkrun_coordinator::manifests;
use milkrun_proto::control::v1 as control;
use milkrun_repository::Repository;
use milkrun_repository::chunk::PAGE;
use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::stream_cutter::StreamCutter;
use milkrun_repository::clock::entropy;
use milkrun_repository::config::LockPolicy;
use milkrun_repository::keys::wrapped::Cost;
use milkrun_repository::repository::{InitOptions, init};
use milkrun_repository::store::StoreUrl;
use milkrun_repository::verify::{Options, verify};
use serde_json::json;

use super::{backup, restore};
use crate::args::{self, Global};
use crate::embedded::{self, host};
use crate::output::{CliError, Exit, print, print_json, table};
use crate::place::{self, OpenedStore};
use crate::units;

const APPLICATION: &str = "sample";
const PASSWORD: &[u8] = b"milkrun try";
/// The sample's volumes.
const DATA_BYTES: u64 = 192 << 20;
const LOGS_BYTES: u64 = 64 << 20;
/// Pages that change between the two backups.
const CHANGED_PAGES: u64 = 16;

const MANIFESTS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: sample\n  namespace: sample\ndata:\n  greeting: hello\n---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata:\n  name: sample\n  namespace: sample\nspec:\n  serviceName: sample\n  replicas: 1\n---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata:\n  name: data\n  namespace: sample\nspec:\n  volumeMode: Block\n  accessModes: [ReadWriteOnce]\n  resources:\n    requests:\n      storage: 192Mi\n";

struct Volume {
    name: String,
    path: PathBuf,
    /// A sample may be changed. Files that the user names are only read.
    sample: bool,
    file_system: String,
}

pub(crate) async fn run(a: args::Try, global: &Global) -> Result<Exit, CliError> {
    let folder = match &a.folder {
        Some(folder) => folder.clone(),
        None => std::env::temp_dir().join(format!("milkrun-try-{}", hex::encode(entropy::<4>()))),
    };
    let repository_folder = folder.join("repository");
    if repository_folder.exists() {
        return Err(CliError::usage(format!("{repository_folder:?} exists already; choose another --folder")));
    }
    fs::create_dir_all(folder.join("restored")).map_err(|e| CliError::failed(format!("can't make {folder:?}: {e}")))?;
    let folder = fs::canonicalize(&folder).map_err(|e| CliError::failed(format!("{folder:?}: {e}")))?;
    let say = |text: &str| {
        if !global.json {
            print(text);
        }
    };
    say(&format!("Working in {}\n\n", folder.display()));
    let volumes = if a.paths.is_empty() { sample(&folder)? } else { named(&a.paths)? };
    for v in &volumes {
        say(&format!("  volume {}: {}{}\n", v.name, v.path.display(), v.file_system));
    }
    let manifest_file = folder.join("manifests.yaml");
    let lines = if a.paths.is_empty() {
        fs::write(&manifest_file, MANIFESTS).map_err(|e| CliError::failed(format!("{manifest_file:?}: {e}")))?;
        let mut objects = manifests::load_paths(&[manifest_file]).map_err(|e| CliError::from_error(&e))?;
        manifests::encode(&mut objects)
    } else {
        Vec::new()
    };

    let url = StoreUrl::Directory(folder.join("repository"));
    let place = place::connect(&url, global).await?;
    let repository = make(&place).await?;
    let global = Global { cache: Some(global.cache.clone().unwrap_or_else(|| folder.join("cache"))), ..global.clone() };

    let first = back_up(&repository, &place, &volumes, &lines, &global).await?;
    let changed = change(&volumes)?;
    let second = back_up(&repository, &place, &volumes, &lines, &global).await?;
    let targets: Vec<(String, PathBuf)> =
        volumes.iter().map(|v| (v.name.clone(), folder.join("restored").join(format!("{}.img", v.name)))).collect();
    let restored = restore_all(&repository, &place, &targets, !lines.is_empty(), &folder, &global).await?;
    for (v, (_, target)) in volumes.iter().zip(&targets) {
        compare(&v.path, target)?;
    }
    let cache = place::cache(&repository, &global);
    let report = verify(&repository, &cache, &Options { data_percent: 100, parallel: 4, ..Options::default() }).await?;
    if let Some(f) = report.findings.first() {
        return Err(CliError { exit: Exit::Damage, message: format!("{}: {}", f.object, f.reason), advice: None });
    }

    if global.json {
        print_json(json!({
            "folder": folder,
            "backups": [
                { "point": first.point, "stored_bytes": first.stored_bytes, "volumes": backup::volumes_json(&first) },
                { "point": second.point, "stored_bytes": second.stored_bytes, "volumes": backup::volumes_json(&second) },
            ],
            "changed_bytes": changed,
            "restored": restored.done.point,
            "identical": true,
            "findings": [],
        }));
        return Ok(Exit::Done);
    }
    print_summary(&first, &second, &restored, changed);
    print(&format!(
        "\nEvery restored byte is the same as its source, and every stored chunk was opened and checked ({}).\n\n\
         What lies where:\n  {}\n  {}\n  password: {}\n\nGo on with it:\n  export MILKRUN_PASSWORD='{}' MILKRUN_REPOSITORY={url}\n  milkrun points\n  milkrun show {}\n  milkrun verify --data\n",
        units::bytes(report.bytes_read),
        format_args!("the repository: {}", folder.join("repository").display()),
        format_args!("the restored files: {}", folder.join("restored").display()),
        String::from_utf8_lossy(PASSWORD),
        String::from_utf8_lossy(PASSWORD),
        APPLICATION,
    ));
    Ok(Exit::Done)
}

/// Makes the repository.
async fn make(place: &OpenedStore) -> Result<Repository, CliError> {
    let options = InitOptions {
        lock: LockPolicy::NONE,
        pages: PageCutter::DEFAULT,
        streams: StreamCutter::DEFAULT,
        cost: Cost::RECOMMENDED,
    };
    let made = init(place.store.clone(), PASSWORD, options).await.map_err(|e| CliError::from_error(&e))?;
    Ok(made.repository)
}

fn print_summary(
    first: &control::BackupDone,
    second: &control::BackupDone,
    restored: &restore::Restored,
    changed: u64,
) {
    let sum = |d: &control::BackupDone, f: fn(&control::VolumeResult) -> u64| d.volumes.iter().map(f).sum::<u64>();
    let time = |ms: u64| units::time(Duration::from_millis(ms));
    let row = |what: String, d: &control::BackupDone| {
        let sizes = [sum(d, |v| v.size_bytes), sum(d, |v| v.read_bytes), sum(d, |v| v.new_bytes), d.stored_bytes];
        [what].into_iter().chain(sizes.map(units::bytes)).chain([time(d.duration_ms)]).collect::<Vec<_>>()
    };
    let back = &restored.done;
    let total = |f: fn(&control::VolumeRestored) -> u64| units::bytes(back.volumes.iter().map(f).sum());
    let second_name =
        if changed > 0 { format!("backup after {} changed", units::bytes(changed)) } else { "backup again".into() };
    let rows = vec![
        ["", "SIZE", "READ", "NEW", "STORED", "TIME"].map(str::to_owned).to_vec(),
        row("first backup".into(), first),
        row(second_name, second),
        vec![
            "restore".into(),
            total(|v| v.size_bytes),
            total(|v| v.written_bytes),
            String::new(),
            String::new(),
            time(back.duration_ms),
        ],
    ];
    print(&format!("\n{}", table(&rows)));
}

/// Makes two volumes; with a real file system if `mkfs.ext4` is installed.
fn sample(folder: &Path) -> Result<Vec<Volume>, CliError> {
    let fail = |what: &Path, e: std::io::Error| CliError::failed(format!("{what:?}: {e}"));
    let mut volumes = Vec::new();
    for (name, size) in [("data", DATA_BYTES), ("logs", LOGS_BYTES)] {
        let path = folder.join(format!("{name}.img"));
        let content = folder.join(format!("{name}-files"));
        fs::create_dir_all(&content).map_err(|e| fail(&content, e))?;
        fill(&content, size / 2).map_err(|e| fail(&content, e))?;
        let file = File::create_new(&path).map_err(|e| fail(&path, e))?;
        file.set_len(size).map_err(|e| fail(&path, e))?;
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-d"])
            .args([&content, &path])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let file_system = if made.is_ok_and(|s| s.success()) {
            " (ext4)".to_owned()
        } else {
            // Without mkfs.ext4 the bytes of the files are written one after the other into the image.
            let mut at = 0;
            for entry in fs::read_dir(&content).map_err(|e| fail(&content, e))?.flatten() {
                let mut bytes = Vec::new();
                File::open(entry.path()).and_then(|mut f| f.read_to_end(&mut bytes)).map_err(|e| fail(&content, e))?;
                file.write_all_at(&bytes, at).map_err(|e| fail(&path, e))?;
                at += bytes.len().next_multiple_of(PAGE) as u64;
            }
            " (no mkfs.ext4 here: plain bytes)".to_owned()
        };
        fs::remove_dir_all(&content).map_err(|e| fail(&content, e))?;
        volumes.push(Volume { name: name.into(), path, sample: true, file_system });
    }
    Ok(volumes)
}

/// Makes files of half text, half random bytes.
fn fill(folder: &Path, bytes: u64) -> std::io::Result<()> {
    const FILE: usize = 4 << 20;
    let text = b"2026-11-22T14:30:00Z INFO order 4711 accepted: 3 items, 42.50 EUR\n".repeat(FILE / 2 / 66);
    for i in 0..bytes / FILE as u64 {
        let mut content = Vec::with_capacity(FILE);
        while content.len() < FILE / 2 {
            content.extend_from_slice(&entropy::<4096>());
        }
        content.extend_from_slice(format!("file {i}\n").as_bytes());
        content.extend_from_slice(&text);
        fs::write(folder.join(format!("{i:04}.bin")), &content)?;
    }
    Ok(())
}

fn named(paths: &[PathBuf]) -> Result<Vec<Volume>, CliError> {
    let mut volumes: Vec<Volume> = Vec::new();
    for (i, path) in paths.iter().enumerate() {
        let base = path.file_name().map(|n| n.to_string_lossy().replace(['=', '@', '/'], "-"));
        let base = base.unwrap_or_else(|| "volume".into());
        let name = if volumes.iter().any(|v| v.name == base) { format!("{base}-{i}") } else { base };
        volumes.push(Volume { name, path: path.clone(), sample: false, file_system: String::new() });
    }
    Ok(volumes)
}

/// Changes a few pages of the sample's volumes, in place.
fn change(volumes: &[Volume]) -> Result<u64, CliError> {
    let mut changed = 0;
    for v in volumes.iter().filter(|v| v.sample) {
        let fail = |e: std::io::Error| CliError::failed(format!("{:?}: {e}", v.path));
        let file = File::options().write(true).open(&v.path).map_err(fail)?;
        let pages = file.metadata().map_err(fail)?.len() / PAGE as u64;
        for i in 0..CHANGED_PAGES {
            file.write_all_at(&entropy::<PAGE>(), (i * pages / CHANGED_PAGES) * PAGE as u64).map_err(fail)?;
            changed += PAGE as u64;
        }
    }
    Ok(changed)
}

async fn back_up(
    repository: &Repository,
    place: &OpenedStore,
    volumes: &[Volume],
    manifests: &[u8],
    global: &Global,
) -> Result<control::BackupDone, CliError> {
    let driver = embedded::start(repository.clone(), place, &[], global).await?;
    let sources = volumes.iter().map(|v| control::Source {
        name: v.name.clone(),
        path: v.path.display().to_string(),
        stream: false,
        ..Default::default()
    });
    let objects = manifests.iter().filter(|&&b| b == b'\n').count();
    let order = control::BackupOrder {
        application: APPLICATION.into(),
        sources: sources.collect(),
        manifest_objects: u32::try_from(objects).unwrap_or(u32::MAX),
        lock_seconds: 0,
        parent: "auto".into(),
        level: 3,
        host: host(),
        allow_mounted: false,
        allow_changing: false,
        ..Default::default()
    };
    backup::drive(driver, order, manifests.to_vec(), global).await
}

async fn restore_all(
    repository: &Repository,
    place: &OpenedStore,
    targets: &[(String, PathBuf)],
    manifests: bool,
    folder: &Path,
    global: &Global,
) -> Result<restore::Restored, CliError> {
    let driver = embedded::start(repository.clone(), place, &[], global).await?;
    let request = control::RestoreRequest {
        selector: APPLICATION.into(),
        targets: targets
            .iter()
            .map(|(name, path)| control::Target {
                name: name.clone(),
                path: path.display().to_string(),
                ..Default::default()
            })
            .collect(),
        manifests,
        ..Default::default()
    };
    let restored = restore::drive(driver, request, global).await?;
    if manifests {
        restore::write_manifests(&folder.join("restored").join("manifests"), restored.manifests())?;
    }
    Ok(restored)
}

/// Compares two files byte by byte.
fn compare(source: &Path, restored: &Path) -> Result<(), CliError> {
    let fail = |e: std::io::Error| CliError::failed(format!("can't compare {source:?} with {restored:?}: {e}"));
    let (mut a, mut b) = (File::open(source).map_err(fail)?, File::open(restored).map_err(fail)?);
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0_u64;
    loop {
        let n = b.read(&mut y).map_err(fail)?;
        if n == 0 {
            return match a.read(&mut x).map_err(fail)? {
                0 => Ok(()),
                _ => Err(CliError::failed(format!("{restored:?} is shorter than {source:?}"))),
            };
        }
        a.read_exact(&mut x[..n]).map_err(fail)?;
        if x[..n] != y[..n] {
            return Err(CliError {
                exit: Exit::Damage,
                message: format!("{restored:?} differs from {source:?} near byte {at}"),
                advice: None,
            });
        }
        at += n as u64;
    }
}
