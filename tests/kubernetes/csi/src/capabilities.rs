//! How a volume is to be used, and whether the driver can do it.

use tonic::Status;

use crate::csi::VolumeCapability;
use crate::csi::volume_capability::AccessType;
use crate::csi::volume_capability::access_mode::Mode;
use crate::switches::Switches;

/// How a volume is to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Use {
    Block,
    /// With a file system, and options of its mount.
    Mount {
        kind: String,
        flags: Vec<String>,
    },
}

fn mode(capability: &VolumeCapability) -> Mode {
    capability.access_mode.map_or(Mode::Unknown, |mode| mode.mode())
}

/// Whether many nodes may have it at once.
pub(crate) fn many_nodes(capability: &VolumeCapability) -> bool {
    matches!(mode(capability), Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter)
}

/// Whether it is only read.
pub(crate) fn read_only(capability: &VolumeCapability) -> bool {
    matches!(mode(capability), Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly)
}

/// What a capability asks for.
pub(crate) fn wanted(capability: Option<&VolumeCapability>) -> Result<Use, Status> {
    let capability = capability.ok_or_else(|| Status::invalid_argument("no capability is given"))?;
    match &capability.access_type {
        Some(AccessType::Block(_)) => Ok(Use::Block),
        Some(AccessType::Mount(mount)) => {
            let kind = if mount.fs_type.is_empty() { "ext4" } else { &mount.fs_type };
            Ok(Use::Mount { kind: kind.to_owned(), flags: mount.mount_flags.clone() })
        }
        None => Err(Status::invalid_argument("a capability names neither Block nor a file system")),
    }
}

/// Whether the driver, with its switches, can do all that is asked. What it can't do is the text.
pub(crate) fn unsupported(capabilities: &[VolumeCapability], switches: &Switches) -> Result<Option<String>, Status> {
    if capabilities.is_empty() {
        return Err(Status::invalid_argument("no capabilities are given"));
    }
    for capability in capabilities {
        let why = match wanted(Some(capability))? {
            Use::Block if switches.no_block => Some("the storage has no volumes of mode Block"),
            Use::Mount { kind, .. } if !["ext4", "xfs"].contains(&kind.as_str()) => {
                Some("file systems are ext4 or xfs")
            }
            Use::Mount { .. } if many_nodes(capability) && !read_only(capability) => {
                Some("a file system can't be written by many nodes")
            }
            _ if switches.no_read_only_many && many_nodes(capability) && read_only(capability) => {
                Some("a volume can't be read by many nodes")
            }
            _ => None,
        };
        if let Some(why) = why {
            return Ok(Some(why.to_owned()));
        }
    }
    Ok(None)
}
