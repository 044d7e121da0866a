//! `milkrun doctor`

use serde_json::json;

use crate::args::{Doctor, Global};
use crate::output::{CliError, Exit, note, print, print_json};
use crate::trial::{Outcome, Step, Trial};

pub(crate) async fn run(a: Doctor, global: &Global) -> Result<Exit, CliError> {
    let trial = Trial {
        class: a.try_class,
        repository: global.repository_name.clone(),
        namespace: a.milkrun_namespace,
        size: a.size,
        limit: a.step_timeout,
    };
    let quiet = global.quiet || global.json;
    let mut tell = |step: &Step| {
        if !quiet {
            note(&line(step));
        }
    };
    let outcome = trial.run(&mut tell).await.map_err(|e| CliError::from_error(&e))?;
    if global.json {
        print_json(json!({"works": outcome.works(), "advice": outcome.advice(), "trial": outcome}));
    } else {
        print(&conclusion(&outcome));
    }
    Ok(if outcome.works() { Exit::Done } else { Exit::Failed })
}

fn line(step: &Step) -> String {
    let parts: Vec<String> = step.parts.iter().map(|(name, seconds)| format!("{name} {seconds:.0} s")).collect();
    let parts = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
    match &step.failure {
        None => format!("  ok      {:<34} {:>5.1} s{parts}", step.name, step.seconds),
        Some(why) => format!("  FAILED  {:<34} {:>5.1} s  {why}", step.name, step.seconds),
    }
}

fn conclusion(outcome: &Outcome) -> String {
    let class = &outcome.class;
    match (outcome.works(), outcome.rule, outcome.advice()) {
        (true, "", _) => format!("The class {class} works.\n"),
        (true, rule, _) => {
            format!("The class {class} works with a rule: {rule}: [{class}] in each Backup of its volumes.\n")
        }
        (false, _, Some(advice)) => format!("The class {class} does not work. {advice}\n"),
        (false, _, None) => format!("The class {class} does not work.\n"),
    }
}
