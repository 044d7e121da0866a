//! `milkrun agents`, `milkrun drain`

use milkrun_identity::NodeName;
use milkrun_proto::control::v1 as control;
use milkrun_repository::clock::Moment;
use serde_json::json;

use crate::args::Global;
use crate::driver::Driver;
use crate::output::{CliError, Exit, note, print, print_json, table};

pub(crate) async fn list(global: &Global) -> Result<Exit, CliError> {
    let mut driver = Driver::required(global).await?;
    let agents = driver.control.list_agents(control::ListAgentsRequest {}).await?.into_inner().agents;
    if global.json {
        let agents: Vec<_> = agents
            .iter()
            .map(|a| {
                json!({
                    "node": a.node,
                    "connected": a.connected,
                    "since": a.connected.then(|| Moment::from_millis(a.since_ms).to_string()),
                    "version": a.version,
                    "volumes": a.volumes,
                    "volumes_max": (a.volumes_max > 0).then_some(a.volumes_max),
                    "draining": a.draining,
                    "rival": (!a.rival.is_empty()).then(|| json!({
                        "from": a.rival,
                        "at": Moment::from_millis(a.rival_ms).to_string(),
                    })),
                })
            })
            .collect();
        print_json(json!({ "agents": agents }));
        return Ok(Exit::Done);
    }
    let rivals: Vec<_> = agents.iter().filter(|a| !a.rival.is_empty()).cloned().collect();
    let mut rows = vec![["NODE", "STATE", "VOLUMES", "VERSION", "SINCE"].map(str::to_owned).to_vec()];
    for a in agents {
        let state = match (a.connected, a.draining) {
            (false, false) => "not connected",
            (false, true) => "not connected, drained",
            (true, true) => "drained",
            (true, false) => "ready",
        };
        let since = if a.connected { Moment::from_millis(a.since_ms).to_string() } else { String::new() };
        rows.push(vec![a.node, state.into(), a.volumes.to_string(), a.version, since]);
    }
    print(&table(&rows));
    for a in rivals {
        note(&format!(
            "{} has a second agent, at {}; it was refused, last at {}: stop one of the two.",
            a.node,
            a.rival,
            Moment::from_millis(a.rival_ms)
        ));
    }
    Ok(Exit::Done)
}

pub(crate) async fn drain(node: &NodeName, back: bool, global: &Global) -> Result<Exit, CliError> {
    let mut driver = Driver::required(global).await?;
    let request = control::DrainRequest { node: node.to_string(), back };
    let moved = driver.control.drain(request).await?.into_inner().moved;
    if global.json {
        print_json(json!({ "node": node.as_str(), "drained": !back, "moved": moved }));
    } else if back {
        print(&format!("{node} takes work again.\n"));
    } else {
        print(&format!("{node} takes no more work; {moved} volumes go on elsewhere or when it is back.\n"));
    }
    Ok(Exit::Done)
}
