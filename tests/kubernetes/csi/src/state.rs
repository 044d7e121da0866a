//! Volumes and snapshots as they lie on the disk: an image file each, and a small JSON file beside it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard};
use tonic::Status;

use crate::commands::run;
use crate::register;

/// A volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Volume {
    pub(crate) id: String,
    /// The name that it was asked for with: asking again finds it.
    pub(crate) name: String,
    pub(crate) bytes: i64,
    /// Where it can be used: names and values of the topology.
    pub(crate) topology: BTreeMap<String, String>,
    pub(crate) source: Option<Source>,
    /// Bytes of a sector of its devices.
    pub(crate) sector: u32,
    /// The nodes that it is attached to, and whether only for reading.
    pub(crate) attached: BTreeMap<String, bool>,
}

/// What a volume was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    Snapshot(String),
    Volume(String),
}

/// A snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) volume: String,
    pub(crate) bytes: i64,
    /// When it was cut: nanoseconds of Unix time.
    pub(crate) cut: i64,
    /// The group it was cut in, or nothing.
    pub(crate) group: String,
}

/// What lies on the disk.
#[derive(Debug)]
pub(crate) struct State {
    disk: PathBuf,
    cluster: String,
    /// Held by whoever changes something. Only one process changes volumes and snapshots: the one that the sidecars speak with.
    lock: Mutex<()>,
}

/// An id that a name always gets: the same call twice finds what the first one made.
pub(crate) fn id(kind: &str, name: &str) -> String {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    format!("{kind}-{:016x}", hasher.finish())
}

fn failed(path: &Path, e: &io::Error) -> Status {
    Status::internal(format!("{}: {e}", path.display()))
}

impl State {
    pub(crate) fn open(disk: &Path, cluster: &str) -> io::Result<Self> {
        for folder in ["volumes", "snapshots", "loops"] {
            fs::create_dir_all(disk.join(folder))?;
        }
        Ok(Self { disk: disk.to_owned(), cluster: cluster.to_owned(), lock: Mutex::new(()) })
    }

    pub(crate) async fn locked(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().await
    }

    pub(crate) fn disk(&self) -> &Path {
        &self.disk
    }

    /// The image of a volume. Its name begins with the cluster's, so that its loop devices can be found.
    pub(crate) fn volume_image(&self, id: &str) -> PathBuf {
        self.disk.join("volumes").join(format!("{}-{id}.volume", self.cluster))
    }

    pub(crate) fn snapshot_image(&self, id: &str) -> PathBuf {
        self.disk.join("snapshots").join(format!("{id}.image"))
    }

    fn facts(&self, folder: &str, id: &str) -> Option<PathBuf> {
        // An id of somebody else's could be a path.
        let ours = !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        ours.then(|| self.disk.join(folder).join(format!("{id}.json")))
    }

    fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Status> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| failed(path, &e.into())),
            Err(e) if e.kind() == ErrorKind::NotFound || e.kind() == ErrorKind::InvalidFilename => Ok(None),
            Err(e) => Err(failed(path, &e)),
        }
    }

    /// Replaces a file whole.
    fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Status> {
        let text = serde_json::to_vec_pretty(value).map_err(|e| failed(path, &e.into()))?;
        let new = path.with_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, path)).map_err(|e| failed(path, &e))
    }

    fn all<T: DeserializeOwned>(&self, folder: &str) -> Result<Vec<T>, Status> {
        let folder = self.disk.join(folder);
        let entries = fs::read_dir(&folder).map_err(|e| failed(&folder, &e))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
        paths.sort();
        let found: Result<Vec<Option<T>>, Status> = paths.iter().map(|path| Self::read(path)).collect();
        Ok(found?.into_iter().flatten().collect())
    }

    pub(crate) fn volume(&self, id: &str) -> Result<Volume, Status> {
        let path = self.facts("volumes", id).filter(|_| register::knows(&self.disk, id));
        let found = path.map(|path| Self::read(&path)).transpose()?.flatten();
        found.ok_or_else(|| Status::not_found(format!("there is no volume {id}")))
    }

    pub(crate) fn volumes(&self) -> Result<Vec<Volume>, Status> {
        self.all("volumes")
    }

    pub(crate) fn put_volume(&self, volume: &Volume) -> Result<(), Status> {
        let path = self.facts("volumes", &volume.id).ok_or_else(|| Status::internal("an id of no volume"))?;
        Self::write(&path, volume)
    }

    pub(crate) fn remove_volume(&self, id: &str) -> Result<(), Status> {
        self.remove("volumes", id, &self.volume_image(id))
    }

    pub(crate) fn snapshot(&self, id: &str) -> Result<Snapshot, Status> {
        let found = self.facts("snapshots", id).map(|path| Self::read(&path)).transpose()?.flatten();
        found.ok_or_else(|| Status::not_found(format!("there is no snapshot {id}")))
    }

    pub(crate) fn snapshots(&self) -> Result<Vec<Snapshot>, Status> {
        self.all("snapshots")
    }

    pub(crate) fn put_snapshot(&self, snapshot: &Snapshot) -> Result<(), Status> {
        let path = self.facts("snapshots", &snapshot.id).ok_or_else(|| Status::internal("an id of no snapshot"))?;
        Self::write(&path, snapshot)
    }

    pub(crate) fn remove_snapshot(&self, id: &str) -> Result<(), Status> {
        self.remove("snapshots", id, &self.snapshot_image(id))
    }

    fn remove(&self, folder: &str, id: &str, image: &Path) -> Result<(), Status> {
        for path in self.facts(folder, id).iter().map(PathBuf::as_path).chain([image]) {
            match fs::remove_file(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(path, &e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The loop device that a node uses for a volume.
    pub(crate) fn device(&self, node: &str, volume: &str) -> Result<Option<String>, Status> {
        Self::read(&self.device_file(node, volume))
    }

    /// Keeps or forgets it.
    pub(crate) fn put_device(&self, node: &str, volume: &str, device: Option<&str>) -> Result<(), Status> {
        let path = self.device_file(node, volume);
        match device {
            Some(device) => Self::write(&path, &device),
            None => match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(failed(&path, &e)),
                _ => Ok(()),
            },
        }
    }

    fn device_file(&self, node: &str, volume: &str) -> PathBuf {
        self.disk.join("loops").join(format!("{node}-{volume}.json"))
    }
}

/// Makes an image: empty, or a reflink copy, of at least that size.
pub(crate) fn make_image(target: &Path, source: Option<&Path>, bytes: i64) -> Result<(), Status> {
    let bytes = u64::try_from(bytes).map_err(|_| Status::invalid_argument(format!("{bytes} is no size")))?;
    if let Some(source) = source {
        let (source, target) = (source.display().to_string(), target.display().to_string());
        run(&["cp", "--reflink=always", "--no-preserve=all", "--", &source, &target])?;
    }
    let file = File::options().create(true).write(true).truncate(false).open(target).map_err(|e| failed(target, &e))?;
    let has = file.metadata().map_err(|e| failed(target, &e))?.len();
    file.set_len(has.max(bytes)).map_err(|e| failed(target, &e))
}
