//! A real PostgreSQL 15 in a folder of the test, run as the user `postgres`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::device::must;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Whether it is installed.
pub fn is_here() -> bool {
    Path::new(BIN).join("initdb").exists()
}

/// A cluster in a folder; stopped when dropped.
pub struct Cluster {
    data: PathBuf,
    socket: PathBuf,
    running: bool,
}

fn as_postgres(command: &str) -> String {
    must("su", &["postgres", "-s", "/bin/sh", "-c", command])
}

impl Cluster {
    /// Makes a cluster with page checksums.
    ///
    /// # Panics
    /// If that fails.
    pub fn init(folder: &Path, socket: &Path) -> Self {
        let cluster = Self::existing(folder, socket);
        must("chown", &["postgres", &folder.display().to_string()]);
        as_postgres(&format!("{BIN}/initdb -k -D {} -A trust --no-sync", cluster.data.display()));
        cluster
    }

    /// A cluster that exists already.
    ///
    /// # Panics
    /// If the folder for its socket can't be made.
    #[expect(clippy::expect_used, reason = "a test helper")]
    pub fn existing(folder: &Path, socket: &Path) -> Self {
        std::fs::create_dir_all(socket).expect("a folder for the socket");
        must("chown", &["postgres", &socket.display().to_string()]);
        Self { data: folder.join("pg"), socket: socket.to_owned(), running: false }
    }

    /// Starts it, on a socket only.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(&mut self) {
        let (data, socket) = (self.data.display(), self.socket.display());
        as_postgres(&format!(
            "{BIN}/pg_ctl -D {data} -w -l {socket}/log -o \"-k {socket} -c listen_addresses='' -c shared_buffers=32MB\" start"
        ));
        self.running = true;
    }

    /// Stops it; `immediate` is a crash.
    pub fn stop(&mut self, mode: &str) {
        if self.running {
            as_postgres(&format!("{BIN}/pg_ctl -D {} -w -m {mode} stop", self.data.display()));
            self.running = false;
        }
    }

    /// Runs a client program of PostgreSQL against it.
    pub fn client(&self, command: &str) -> String {
        as_postgres(&format!("cd /; {BIN}/{command} -h {} postgres", self.socket.display()))
    }

    /// A query's answer.
    pub fn query(&self, sql: &str) -> String {
        as_postgres(&format!("cd /; {BIN}/psql -At -h {} -c \"{sql}\" postgres", self.socket.display()))
    }

    /// Checks every page's checksum; the cluster must be stopped.
    pub fn check_pages(&self) -> String {
        as_postgres(&format!("{BIN}/pg_checksums --check -D {}", self.data.display()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.running {
            let (bin, data) = (BIN, self.data.display());
            let command = format!("{bin}/pg_ctl -D {data} -m immediate stop");
            let _ = Command::new("su").args(["postgres", "-s", "/bin/sh", "-c", &command]).output();
        }
    }
}
