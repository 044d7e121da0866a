//! Ending a cluster, so that nothing of it is left.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::layout::Layout;
use crate::node_space::hierarchies;
use crate::process::wait_for;
use crate::{Result, loops};

const END_MAX: Duration = Duration::from_secs(30);

/// Ends a cluster and removes what it left. It is no error if there is none.
pub(crate) fn down(layout: &Layout, name: &str) -> Result<()> {
    end_supervisor(layout)?;
    loops::free(name, &layout.disk())?;
    remove_cgroups(name)?;
    match fs::remove_dir_all(layout.folder()) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {e}", layout.folder().display())),
        _ => Ok(()),
    }
}

/// The supervisor's parent, as this machine numbers processes, if it runs.
fn parent(layout: &Layout) -> Option<i32> {
    let pid: i32 = fs::read_to_string(layout.pid()).ok()?.trim().parse().ok()?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    // A process of another time may have got the number.
    String::from_utf8_lossy(&words).contains(&*layout.folder().to_string_lossy()).then_some(pid)
}

/// The supervisor, as this machine numbers processes.
pub(crate) fn supervisor(layout: &Layout) -> Option<i32> {
    parent(layout).and_then(|parent| children(parent).first().copied())
}

fn end_supervisor(layout: &Layout) -> Result<()> {
    let Some(parent) = parent(layout) else { return Ok(()) };
    let child = children(parent);
    for pid in child.iter().chain([&parent]) {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    wait_for("the cluster's processes to end", END_MAX, || {
        let gone = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty();
        child.iter().chain([&parent]).all(gone).then_some(())
    })
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

fn remove_cgroups(name: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let top = hierarchy.join(format!("milkrun-{name}"));
        if top.exists() {
            // Processes that were killed leave their cgroup a moment later.
            wait_for(&top.display().to_string(), END_MAX, || {
                remove_tree(&top);
                (!top.exists()).then_some(())
            })?;
        }
    }
    Ok(())
}

/// Removes cgroups from the leaves up. Files in them can't be removed, nor must they.
fn remove_tree(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}
