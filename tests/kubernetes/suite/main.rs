//! milkrun in a real Kubernetes cluster: real kubelets, real snapshots, real pods. Each test has a cluster of its own, in
//! namespaces of its own, and drives it with `kubectl` and `helm` alone. The longest test has the first name: it
//! would be the last to end otherwise.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod authority;
mod backup_and_restore;
mod csi_sanity;
mod doctor;
mod faults;
mod freeze;
mod groups;
mod in_place;
mod installed;
mod leaves_nothing;
mod playground;
mod policies;
mod repositories;
mod role;
mod tokens;
