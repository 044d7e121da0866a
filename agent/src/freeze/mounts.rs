//! What is mounted where, as proc(5) describes `mountinfo`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Where mounts of this process's namespace are listed.
const MOUNTS: &str = "/proc/self/mountinfo";

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    id: u64,
    /// The number of the file system's device: major, colon, minor.
    pub(super) device: String,
    /// Which folder of the file system is mounted.
    root: PathBuf,
    /// Where.
    pub(super) point: PathBuf,
}

/// All mounts.
pub(super) fn all() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read_to_string(MOUNTS)?))
}

fn parse(mountinfo: &str) -> Vec<Mount> {
    let of_line = |line: &str| {
        let mut words = line.split(' ');
        let id = words.next()?.parse().ok()?;
        let device = words.nth(1)?.to_owned();
        let (root, point) = (words.next()?, words.next()?);
        Some(Mount { id, device, root: unescape(root).into(), point: unescape(point).into() })
    };
    mountinfo.lines().filter_map(of_line).collect()
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                out.push_str(&part[3..]);
            }
            None => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

/// The mount that an open file lies on.
pub(super) fn of(file: &File, all: &[Mount]) -> io::Result<Mount> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    let found = all.iter().find(|mount| Some(mount.id) == id).cloned();
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is mounted nowhere"))
}

impl Mount {
    /// Whether the whole file system is mounted at `point`, and, with a folder given, nowhere outside of that folder: whoever freezes
    /// it stops nothing that lies beside it.
    pub(super) fn is_alone_at(&self, point: &Path, within: Option<&Path>, all: &[Mount]) -> bool {
        let same = all.iter().filter(|other| other.device == self.device);
        let outside = |other: &Mount| within.is_some_and(|folder| !other.point.starts_with(folder));
        self.root == Path::new("/") && self.point == point && !same.into_iter().any(outside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "36 35 98:0 / / rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                        37 36 98:1 / /k/with\\040space rw - ext4 /dev/b rw\n\
                        38 36 98:0 /var/lib /k/folder rw - ext3 /dev/root rw\n\
                        39 36 98:2 / /k/twice rw - xfs /dev/c rw\n40 36 98:2 / /data rw - xfs /dev/c rw\n\
                        41 36 98:3 /sub /k/sub\\134x rw - ext4 /dev/d rw\n";

    #[test]
    fn only_a_whole_file_system_that_is_nowhere_else_is_alone() {
        let all = parse(TEXT);
        let alone = |point: &str| {
            let mount = all.iter().find(|mount| mount.point == Path::new(point)).unwrap();
            mount.is_alone_at(Path::new(point), Some(Path::new("/k")), &all)
        };
        assert!(alone("/k/with space"));
        for bad in ["/k/folder", "/k/twice", "/k/sub\\x", "/"] {
            assert!(!alone(bad), "{bad}");
        }
        // A folder below the mount is not the mount.
        assert!(!all[1].is_alone_at(Path::new("/k/with space/below"), None, &all));
    }

    #[test]
    fn the_mount_of_an_open_file_is_found() {
        let all = all().unwrap();
        let mount = of(&File::open("/proc").unwrap(), &all).unwrap();
        assert_eq!(mount.point, Path::new("/proc"));
    }
}
