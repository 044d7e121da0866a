//! Loop devices that a cluster left: those of its volumes, and those that kubelets keep on top of volumes of mode Block.

use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::Result;
use crate::process::{run, wait_for, words};

const FREE_MAX: Duration = Duration::from_secs(30);

/// A loop device: its name, the inode of what it offers, and that one's path as far as it is still known.
struct Loop {
    device: String,
    inode: u64,
    file: String,
}

fn all() -> Result<Vec<Loop>> {
    let out = run(&mut words("losetup --list --noheadings --raw --output NAME,BACK-INO,BACK-FILE"))?;
    let parse = |line: &str| {
        let mut parts = line.splitn(3, ' ');
        let (device, inode, file) = (parts.next()?, parts.next()?.parse().ok()?, parts.next().unwrap_or_default());
        Some(Loop { device: device.to_owned(), inode, file: file.trim_end_matches("\\x20(deleted)").to_owned() })
    };
    Ok(out.lines().filter_map(parse).collect())
}

/// Those of a cluster's volumes. The driver names each image after its cluster.
fn of_volumes<'a>(all: &'a [Loop], cluster: &str) -> Vec<&'a Loop> {
    let is_image = |file: &Path| {
        let named = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{cluster}-")));
        named && file.extension().is_some_and(|extension| extension == "volume")
    };
    all.iter().filter(|found| is_image(Path::new(&found.file))).collect()
}

/// Those on top of these. The kernel knows a device that a loop device offers by the inode of its node in `/dev`.
fn on_top<'a>(all: &'a [Loop], below: &[&Loop]) -> Vec<&'a Loop> {
    let nodes = below.iter().filter_map(|found| std::fs::metadata(&found.device).ok().map(|node| node.st_ino()));
    let nodes: Vec<u64> = nodes.collect();
    all.iter().filter(|found| !found.file.ends_with(".volume") && nodes.contains(&found.inode)).collect()
}

/// Frees all loop devices of a cluster, and waits until the one of its disk is free too.
pub(crate) fn free(cluster: &str, disk: &Path) -> Result<()> {
    wait_for("the cluster's loop devices to go", FREE_MAX, || {
        let all = all().ok()?;
        let volumes = of_volumes(&all, cluster);
        let upper = on_top(&all, &volumes);
        for found in upper.iter().chain(&volumes) {
            // One that is still used is freed at the next look.
            let _ = run(&mut words(&format!("losetup --detach {}", found.device)));
        }
        let of_disk = all.iter().any(|found| Path::new(&found.file) == disk);
        (volumes.is_empty() && upper.is_empty() && !of_disk).then_some(())
    })
}
