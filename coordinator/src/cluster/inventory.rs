//! The inventory in a cluster: each node whose agent has enrolled takes part, and the operator names the volumes.

use milkrun_coordinator::inventory::{Application, Inventory, InventoryError, Loads, NodeLimits, StoreLimits};
use milkrun_repository::id::AppName;

/// Any node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnyNode;

impl Inventory for AnyNode {
    fn trusts_orders(&self) -> bool {
        false
    }

    fn node(&self, _: &str) -> Result<Option<NodeLimits>, InventoryError> {
        Ok(Some(NodeLimits::default()))
    }

    fn nodes(&self) -> Result<Vec<String>, InventoryError> {
        Ok(Vec::new())
    }

    fn loads(&self) -> Result<Loads, InventoryError> {
        Ok(Loads { store: StoreLimits::default(), repositories: std::collections::BTreeMap::new(), nodes: None })
    }

    fn application(&self, name: &AppName) -> Result<Application, InventoryError> {
        Err(InventoryError::NoApplication(name.clone()))
    }
}
