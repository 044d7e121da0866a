//! Loop devices and mounts that go away with the test.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program and asserts that it succeeds. Returns its output.
///
/// # Panics
/// If it can't be started or fails.
#[expect(clippy::expect_used, reason = "a test helper")]
pub fn must(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}")).expect("starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {out}{err}");
    out.trim().to_owned()
}

/// A loop device.
pub struct Loop(PathBuf);

impl Loop {
    /// Attaches `image`.
    ///
    /// # Panics
    /// If that fails.
    pub fn attach(image: &Path) -> Self {
        let image = image.display().to_string();
        Self(must("losetup", &["--find", "--show", &image]).into())
    }

    /// A fresh device of that size, in `folder`.
    ///
    /// # Panics
    /// If that fails.
    #[expect(clippy::expect_used, reason = "a test helper")]
    pub fn fresh(folder: &Path, name: &str, bytes: u64) -> Self {
        let image = folder.join(name);
        let file = std::fs::File::create(&image).expect("the image can be made");
        file.set_len(bytes).expect("the image can grow");
        Self::attach(&image)
    }

    /// Its path.
    pub fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// A mount.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts `device` at a new folder.
    ///
    /// # Panics
    /// If that fails.
    #[expect(clippy::expect_used, reason = "a test helper")]
    pub fn new(device: &str, at: &Path, options: &[&str]) -> Self {
        std::fs::create_dir_all(at).expect("a mount point");
        let at_text = at.display().to_string();
        let args: Vec<&str> = options.iter().copied().chain([device, &at_text]).collect();
        must("mount", &args);
        Self(at.to_owned())
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
