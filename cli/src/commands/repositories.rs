//! `milkrun repositories`

use milkrun_proto::control::v1 as control;
use milkrun_repository::clock::Moment;
use serde_json::json;

use crate::args::Global;
use crate::driver::Driver;
use crate::output::{CliError, Exit, print, print_json, table};

pub(crate) async fn list(global: &Global) -> Result<Exit, CliError> {
    let mut driver = Driver::required(global).await?;
    let reply = driver.control.list_repositories(control::ListRepositoriesRequest {}).await?.into_inner();
    let repositories = reply.repositories;
    if global.json {
        let all: Vec<_> = repositories
            .iter()
            .map(|r| {
                json!({
                    "name": r.name,
                    "url": r.address,
                    "repository": (!r.id.is_empty()).then_some(&r.id),
                    "ready": r.ready,
                    "reason": (!r.ready).then_some(&r.reason),
                    "since": Moment::from_millis(r.since_ms).to_string(),
                })
            })
            .collect();
        print_json(json!({ "repositories": all }));
        return Ok(Exit::Done);
    }
    let mut rows = vec![["NAME", "STATE", "SINCE", "WHERE"].map(str::to_owned).to_vec()];
    for r in &repositories {
        let name = if r.name.is_empty() { "-" } else { &r.name };
        let state = if r.ready { "ready" } else { "not ready" };
        rows.push(vec![name.into(), state.into(), Moment::from_millis(r.since_ms).to_string(), r.address.clone()]);
    }
    print(&table(&rows));
    for r in repositories.iter().filter(|r| !r.ready) {
        print(&format!("{}: {}\n", r.name, r.reason));
    }
    Ok(Exit::Done)
}
