//! The gRPC contract between CLI, coordinator and agents. Generated from the .proto files beside this crate's manifest.

/// Coordinator and agents.
pub mod agent {
    /// Version 1.
    #[allow(clippy::all, clippy::pedantic, unreachable_pub)]
    pub mod v1 {
        tonic::include_proto!("milkrun.agent.v1");
    }
}

/// Whoever drives the coordinator.
pub mod control {
    /// Version 1.
    #[allow(clippy::all, clippy::pedantic, unreachable_pub)]
    pub mod v1 {
        tonic::include_proto!("milkrun.control.v1");
    }
}

/// How a process in a cluster gets its certificate.
pub mod identity {
    /// Version 1.
    #[allow(clippy::all, clippy::pedantic, unreachable_pub)]
    pub mod v1 {
        tonic::include_proto!("milkrun.identity.v1");
    }
}

/// Messages may be as long: a page of a restore plan, a window of a parent's map, a piece of manifests.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
