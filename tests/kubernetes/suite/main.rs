//! milkrun in a real Kubernetes cluster: real kubelets, real snapshots, real pods. Each test has a cluster of its own, in
//! namespaces of its own, and drives it with `kubectl` and `helm` alone.

#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod csi_sanity;
mod faults;
mod installed;
mod leaves_nothing;
mod playground;
mod repositories;
mod round_trip;
mod tokens;
