//! `milkrun certs`

use milkrun_identity::Peer;
use milkrun_identity::authority::{Authority, AuthorityError, Revoked};
use serde_json::json;

use crate::args::{self, Global};
use crate::output::{CliError, Exit, note, print, print_json};

pub(crate) fn run(what: args::Certs, global: &Global) -> Result<Exit, CliError> {
    let explain = |e: AuthorityError| match e {
        AuthorityError::Exists(_)
        | AuthorityError::None(_)
        | AuthorityError::Time
        | AuthorityError::NoCertificate(_) => CliError::usage(e.to_string()),
        e => CliError::from_error(&e),
    };
    let folder = match what {
        args::Certs::Authority { folder, valid } => {
            Authority::create(&folder, valid).map_err(explain)?;
            note("Keep ca.key where no node is: whoever has it can be anybody.");
            folder
        }
        args::Certs::Coordinator { issue, hosts } => issue_one(&issue, &Peer::Coordinator, &hosts).map_err(explain)?,
        args::Certs::Agent { issue, node } => issue_one(&issue, &Peer::Agent(node), &[]).map_err(explain)?,
        args::Certs::Revoke { folder, certificate } => {
            let authority = Authority::open(&folder).map_err(explain)?;
            return Ok(say_revoked(&authority.revoke(&certificate).map_err(explain)?, global));
        }
        args::Certs::User { issue, name, role } => {
            issue_one(&issue, &Peer::User { name, roles: role }, &[]).map_err(explain)?
        }
    };
    if global.json {
        print_json(json!({ "folder": folder }));
    } else {
        print(&format!("{}\n", folder.display()));
    }
    Ok(Exit::Done)
}

fn say_revoked(revoked: &Revoked, global: &Global) -> Exit {
    if global.json {
        let serial = revoked.serial.to_string();
        print_json(json!({ "serial": serial, "lists": revoked.lists, "moved": revoked.moved }));
        return Exit::Done;
    }
    print(&format!("{} is revoked.\n", revoked.serial));
    for list in &revoked.lists {
        print(&format!("  {}\n", list.display()));
    }
    if let Some(moved) = &revoked.moved {
        note(&format!("Its folder is {} now: its name can be given anew.", moved.display()));
    }
    if revoked.lists.len() < 2 {
        note("No coordinator's folder is here: put ca.crl beside ca.crt of each coordinator.");
    }
    Exit::Done
}

fn issue_one(issue: &args::Issue, peer: &Peer, hosts: &[String]) -> Result<std::path::PathBuf, AuthorityError> {
    Authority::open(&issue.folder)?.issue(peer, hosts, issue.valid)
}
