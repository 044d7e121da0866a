//! Which paths an agent opens. In a cluster it opens block volumes of pods, at the place where the kubelet shows them, freezes file
//! systems of pods, at the place where the kubelet mounts them, and nothing else: whoever can give it orders can't read, write or
//! stop its node.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

/// Where the kubelet links the block volumes of pods, below its folder: `pods/<uid>/volumeDevices/<plugin>/<volume>`.
const PLUGIN: &str = "kubernetes.io~csi";
/// Where these links lead, below its folder.
const DEVICES: &str = "plugins/kubernetes.io/csi/volumeDevices";

/// Which paths an agent opens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowedPaths {
    /// Any.
    #[default]
    Any,
    /// Block volumes of pods, below the kubelet's folder.
    Kubelet(PathBuf),
}

/// Why a path is not opened.
#[derive(Debug, thiserror::Error)]
pub enum NotAllowed {
    /// It has another shape.
    #[error(
        "{path:?} is no block volume of a pod: this agent opens {root}/pods/<uid>/volumeDevices/{PLUGIN}/<volume> only"
    )]
    Shape {
        /// Which one.
        path: PathBuf,
        /// The kubelet's folder.
        root: String,
    },
    /// Of a mount, it has another shape.
    #[error(
        "{path:?} is no mounted volume of a pod: this agent freezes {root}/pods/<uid>/volumes/{PLUGIN}/<volume>/mount only"
    )]
    MountShape {
        /// Which one.
        path: PathBuf,
        /// The kubelet's folder.
        root: String,
    },
    /// It leads to something else.
    #[error("{path:?} leads to {to:?}, which is no device of a volume")]
    Elsewhere {
        /// Which one.
        path: PathBuf,
        /// Where it leads.
        to: PathBuf,
    },
    /// It is not there.
    #[error("{path:?} is not there: the pod is gone, or the agent does not see the kubelet's mounts")]
    Missing {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn is_uid(text: &str) -> bool {
    text.len() == 36 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f' | '-'))
}

fn is_name(text: &str) -> bool {
    let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    !text.is_empty() && text.len() <= 253 && !text.starts_with('.') && text.chars().all(sound)
}

/// The names that a relative path consists of, if it has nothing else.
fn names(path: &Path) -> Option<Vec<&str>> {
    let name = |part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    };
    path.components().map(name).collect()
}

/// Whether a path below the kubelet's folder has the shape of a pod's block volume.
fn has_shape(path: &Path) -> bool {
    let names = names(path);
    matches!(names.as_deref(), Some(["pods", uid, "volumeDevices", PLUGIN, volume]) if is_uid(uid) && is_name(volume))
}

/// Whether a path below the kubelet's folder has the shape of a pod's mounted volume.
fn has_mount_shape(path: &Path) -> bool {
    let names = names(path);
    matches!(names.as_deref(), Some(["pods", uid, "volumes", PLUGIN, volume, "mount"]) if is_uid(uid) && is_name(volume))
}

impl AllowedPaths {
    /// Whether a path may be opened.
    ///
    /// # Errors
    /// [`NotAllowed`].
    pub fn check(&self, path: &Path) -> Result<(), NotAllowed> {
        let Self::Kubelet(root) = self else { return Ok(()) };
        if !path.strip_prefix(root).is_ok_and(has_shape) {
            return Err(NotAllowed::Shape { path: path.to_owned(), root: root.display().to_string() });
        }
        let missing = |source| NotAllowed::Missing { path: path.to_owned(), source };
        let to = fs::canonicalize(path).map_err(missing)?;
        let devices = fs::canonicalize(root.join(DEVICES)).map_err(missing)?;
        let device = fs::metadata(&to).map_err(missing)?.file_type().is_block_device();
        if to.starts_with(devices) && device {
            Ok(())
        } else {
            Err(NotAllowed::Elsewhere { path: path.to_owned(), to })
        }
    }

    /// Where a file system may be mounted that is frozen, without links, and the folder outside of which it must not be mounted.
    ///
    /// # Errors
    /// [`NotAllowed`].
    pub fn check_mount(&self, path: &Path) -> Result<(PathBuf, Option<PathBuf>), NotAllowed> {
        let missing = |source| NotAllowed::Missing { path: path.to_owned(), source };
        let to = || fs::canonicalize(path).map_err(missing);
        let Self::Kubelet(root) = self else { return Ok((to()?, None)) };
        let Some(below) = path.strip_prefix(root).ok().filter(|below| has_mount_shape(below)) else {
            return Err(NotAllowed::MountShape { path: path.to_owned(), root: root.display().to_string() });
        };
        let (root, to) = (fs::canonicalize(root).map_err(missing)?, to()?);
        if to != root.join(below) {
            return Err(NotAllowed::Elsewhere { path: path.to_owned(), to });
        }
        Ok((to, Some(root)))
    }

    /// Whether the agent opens volumes only: no streams, and no files beside volumes.
    #[must_use]
    pub fn volumes_only(&self) -> bool {
        *self != Self::Any
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const UID: &str = "20feffe9-e996-4095-b222-e3a333ca257f";

    #[test]
    fn only_block_volumes_of_pods_have_the_shape() {
        let good = format!("pods/{UID}/volumeDevices/kubernetes.io~csi/pvc-1");
        assert!(has_shape(Path::new(&good)));
        for bad in [
            format!("pods/{UID}/volumes/kubernetes.io~csi/pvc-1"),
            format!("pods/{UID}/volumeDevices/kubernetes.io~csi/../../../x"),
            format!("pods/{UID}/volumeDevices/kubernetes.io~csi"),
            format!("pods/{UID}/volumeDevices/kubernetes.io~csi/pvc-1/x"),
            "pods/short/volumeDevices/kubernetes.io~csi/pvc-1".to_owned(),
            format!("pods/{UID}/volumeDevices/kubernetes.io~csi/.x"),
        ] {
            assert!(!has_shape(Path::new(&bad)), "{bad}");
        }
    }

    #[test]
    fn only_mounts_of_pods_are_frozen() {
        assert!(has_mount_shape(Path::new(&format!("pods/{UID}/volumes/{PLUGIN}/pvc-1/mount"))));
        let root = tempfile::tempdir().unwrap();
        let allowed = AllowedPaths::Kubelet(root.path().to_owned());
        let folder = root.path().join(format!("pods/{UID}/volumes/{PLUGIN}/pvc-1"));
        for bad in [root.path().to_owned(), folder.clone(), folder.join("mount/x"), "/".into(), "/proc".into()] {
            assert!(matches!(allowed.check_mount(&bad), Err(NotAllowed::MountShape { .. })), "{bad:?}");
        }
        assert!(matches!(allowed.check_mount(&folder.join("mount")), Err(NotAllowed::Missing { .. })));
        fs::create_dir_all(folder.join("mount")).unwrap();
        assert!(allowed.check_mount(&folder.join("mount")).is_ok());
        fs::remove_dir(folder.join("mount")).unwrap();
        symlink("/proc", folder.join("mount")).unwrap();
        assert!(matches!(allowed.check_mount(&folder.join("mount")), Err(NotAllowed::Elsewhere { .. })));
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let allowed = AllowedPaths::Kubelet(root.path().to_owned());
        let folder = root.path().join(format!("pods/{UID}/volumeDevices/{PLUGIN}"));
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(root.path().join(DEVICES)).unwrap();
        let link = folder.join("pvc-1");
        assert!(matches!(allowed.check(&link), Err(NotAllowed::Missing { .. })));
        symlink("/etc/passwd", &link).unwrap();
        assert!(matches!(allowed.check(&link), Err(NotAllowed::Elsewhere { .. })));
        // A file in the right place is no device.
        let file = root.path().join(DEVICES).join("file");
        fs::write(&file, "").unwrap();
        fs::remove_file(&link).unwrap();
        symlink(&file, &link).unwrap();
        assert!(matches!(allowed.check(&link), Err(NotAllowed::Elsewhere { .. })));
        assert!(matches!(allowed.check(Path::new("/etc/passwd")), Err(NotAllowed::Shape { .. })));
        assert!(AllowedPaths::Any.check(Path::new("/etc/passwd")).is_ok());
    }
}
