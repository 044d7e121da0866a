//! A network of hosts on one machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::{Command, Stdio};

/// A network of hosts. Each host is a network namespace.
pub struct Network {
    prefix: String,
    hosts: BTreeMap<String, u8>,
}

impl Network {
    /// Makes a bridge in its own namespace. `None` if namespaces can't be made.
    pub fn new() -> Option<Self> {
        static NETWORKS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NETWORKS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let prefix = format!("mr{}-{number}", std::process::id());
        let network = Self { prefix, hosts: BTreeMap::new() };
        let hub = network.name("hub");
        let made = ip(&["netns", "add", &hub])
            && ip(&["-n", &hub, "link", "add", "name", "hub0", "type", "bridge"])
            && ip(&["-n", &hub, "link", "set", "hub0", "up"]);
        made.then_some(network)
    }

    fn name(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// Adds a host.
    ///
    /// # Panics
    /// If that fails.
    pub fn add(&mut self, host: &str) {
        let number = u8::try_from(self.hosts.len() + 1).unwrap_or(u8::MAX);
        let (space, hub) = (self.name(host), self.name("hub"));
        let (inner, outer) = (format!("v{number}i"), format!("v{number}o"));
        let address = format!("10.77.0.{number}/24");
        let steps: [&[&str]; 8] = [
            &["netns", "add", &space],
            &["-n", &hub, "link", "add", "name", &outer, "type", "veth", "peer", "name", &inner],
            &["-n", &hub, "link", "set", &inner, "netns", &space],
            &["-n", &hub, "link", "set", &outer, "master", "hub0"],
            &["-n", &hub, "link", "set", &outer, "up"],
            &["-n", &space, "addr", "add", &address, "dev", &inner],
            &["-n", &space, "link", "set", &inner, "up"],
            &["-n", &space, "link", "set", "lo", "up"],
        ];
        for step in steps {
            assert!(ip(step), "ip {step:?}");
        }
        self.hosts.insert(host.to_owned(), number);
    }

    /// A host's address.
    pub fn address(&self, host: &str) -> String {
        format!("10.77.0.{}", self.hosts.get(host).copied().unwrap_or(0))
    }

    /// The words that come before a command to run it on that host.
    pub fn prefix(&self, host: &str) -> Vec<String> {
        ["ip", "netns", "exec"].map(str::to_owned).into_iter().chain([self.name(host)]).collect()
    }

    /// A command that runs on that host.
    pub fn on(&self, host: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let prefix = self.prefix(host);
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(program);
        command
    }

    /// Runs `work` in a thread of this process, on that host.
    ///
    /// # Panics
    /// If the host's namespace can't be entered, or `work` panics.
    #[expect(clippy::expect_used, reason = "a test helper")]
    pub fn within<T: Send>(&self, host: &str, work: impl FnOnce() -> T + Send) -> T {
        let space = File::open(format!("/run/netns/{}", self.name(host))).expect("the namespace");
        let inside = move || {
            // This changes only this thread, which ends with the work.
            nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().expect("the work ends"))
    }

    /// Cuts one direction: nothing that `from` sends reaches `to` any more.
    ///
    /// # Panics
    /// If that fails.
    pub fn cut(&self, from: &str, to: &str) {
        let step = ["-n", &self.name(from), "route", "add", "blackhole", &format!("{}/32", self.address(to))];
        assert!(ip(&step), "ip {step:?}");
    }

    /// Undoes [`Self::cut`].
    ///
    /// # Panics
    /// If that fails.
    pub fn heal(&self, from: &str, to: &str) {
        let step = ["-n", &self.name(from), "route", "del", "blackhole", &format!("{}/32", self.address(to))];
        assert!(ip(&step), "ip {step:?}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.hosts.keys().map(String::as_str).chain(["hub"]) {
            ip(&["netns", "del", &self.name(host)]);
        }
    }
}

fn ip(args: &[&str]) -> bool {
    let status = Command::new("ip").args(args).stderr(Stdio::null()).status();
    status.is_ok_and(|s| s.success())
}
