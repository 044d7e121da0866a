//! Moving the volumes: their snapshots are offered as devices, so many at once, and each is given back as soon as it was read.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use milkrun_proto::control::v1 as control;
use milkrun_resources::Backup;
use milkrun_resources::backup::BackupStep;

use super::clean_up::give_back;
use super::expose::expose;
use super::group::{goes, group_of, makes, protect, sweep, wake};
use super::observe::Observed;
use super::planned::Plan;
use crate::Settings;
use crate::claim_facts::{ClaimFacts, bytes};
use crate::coordinator::{Run, progress};
use crate::holder::{Around, Stuck, reach};
use crate::run::Call;
use crate::snapshots::VolumeSnapshot;
use crate::steps::{count_again, lasted, since, time};

/// How long all snapshots may take until volumes can be made from them. Some storages upload them first.
const READY_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long the twin of a snapshot that is ready may take to be ready.
const TWIN_MAX: Duration = Duration::from_secs(600);

/// Why a volume can't be read any more.
const GONE: &str = "somebody removed its snapshot";

/// Offers volumes, and gives back those that were read.
pub(super) fn move_volumes(backup: &Backup, seen: &Observed, settings: &Settings, now: Timestamp, plan: &mut Plan) {
    let Some(run) = plan.going(seen) else { return };
    let waited = lasted(&plan.status.steps, &BackupStep::Move, now);
    count(run, now, plan);
    plan.tidying.extend(sweep(backup, &mut plan.status, seen));
    plan.tidying.extend(wake(&plan.status, seen, now));
    plan.actions.extend(protect(backup, seen));
    give_back_done(run, seen, plan);
    let known = progress(run);
    let claims: Vec<String> = plan.status.volumes.keys().cloned().collect();
    let (mut waits, mut unready) = (Vec::new(), false);
    for claim in &claims {
        if let Some(volume) = plan.status.volumes.get_mut(claim) {
            // The run knows a source once it was added, also under another operator.
            volume.offered |= known.contains_key(claim);
        }
        if plan.status.volumes[claim].offered {
            continue;
        }
        unready |= !seen.is_ready(claim);
        match offer(backup, claim, seen, settings, now, plan) {
            Ok(()) => {}
            Err(Stuck::Waits(why)) => waits.push(format!("{claim} waits for {why}")),
            Err(Stuck::Failed(why)) => {
                plan.status.failure = Some(format!("claim {claim}: {why}"));
                return;
            }
        }
    }
    if waits.is_empty() && plan.status.volumes.values().all(|volume| volume.offered) {
        plan.status.message.clear();
        plan.status.step = BackupStep::Commit;
    } else if unready && waited > READY_MAX {
        plan.status.failure = Some(format!("after {} h: {}", READY_MAX.as_secs() / 3600, waits.join("; ")));
    } else {
        plan.status.message = waits.join("; ");
    }
}

/// Gives back the volumes that were read: others wait for their slots.
pub(super) fn give_back_done(run: &Run, seen: &Observed, plan: &mut Plan) {
    let done = run.volumes.iter().filter(|volume| volume.done);
    plan.tidying.extend(done.filter_map(|volume| give_back(&volume.name, seen).err().flatten()));
}

/// Notes how far each volume is, from time to time, and at the end.
pub(super) fn count(run: &Run, now: Timestamp, plan: &mut Plan) {
    let over = run.state() == control::run::State::Done;
    if !over && !count_again(plan.status.counted.as_ref(), now) {
        return;
    }
    for (claim, (done, size)) in progress(run) {
        if let Some(volume) = plan.status.volumes.get_mut(&claim) {
            (volume.done, volume.size) = (Some(done), Some(size));
            plan.status.counted = Some(time(now));
        }
    }
}

/// Makes the next object for a volume, or offers it to the run.
fn offer(
    backup: &Backup,
    claim: &str,
    seen: &Observed,
    settings: &Settings,
    now: Timestamp,
    plan: &mut Plan,
) -> Result<(), Stuck> {
    let made = makes(&plan.status, claim, seen);
    if (made || seen.contents.contains_key(claim)) && !seen.volumes.contains_key(claim) {
        return Err(Stuck::Failed("its volume is gone".into()));
    }
    let snapshot = match seen.snapshots.get(claim) {
        Some(snapshot) if !goes(&plan.status, claim, seen) => snapshot,
        None if made => return Err(Stuck::Waits("its snapshot in the group".into())),
        _ => return Err(Stuck::Failed(GONE.into())),
    };
    if let Some(action) = expose(backup, claim, seen, settings) {
        plan.actions.push(action);
    }
    let twin_waits = seen.twins.get(claim).is_some_and(|twin| !twin.is_ready());
    if let Some(volume) = plan.status.volumes.get_mut(claim)
        && !seen.holders.contains_key(claim)
    {
        let since = twin_waits.then(|| volume.waits_since.clone().unwrap_or_else(|| time(now)));
        volume.waits_since = since;
    }
    let Some(pod) = seen.holders.get(claim) else {
        let twin = "its snapshot to be ready in the work namespace, too";
        let said = |snapshot: &VolumeSnapshot| snapshot.error().map(|why| format!(": {why}")).unwrap_or_default();
        let waited = plan.status.volumes.get(claim).and_then(|volume| volume.waits_since.as_ref());
        return Err(match (seen.is_ready(claim), seen.may_expose.contains(claim)) {
            (false, _) => Stuck::Waits(format!("its snapshot to be ready{}", said(snapshot))),
            (true, false) => {
                Stuck::Waits(format!("one of the {} volumes that are exposed at once", settings.exposed_max))
            }
            // The application's snapshot goes on saying that it is ready when the storage has lost it.
            (true, true) if waited.is_some_and(|waited| since(waited, now) > TWIN_MAX) => {
                let error = seen.twins.get(claim).map(said).unwrap_or_default();
                Stuck::Failed(format!("for {} s it waited for {twin}{error}", TWIN_MAX.as_secs()))
            }
            (true, true) => Stuck::Waits(format!("{twin}{}", seen.twins.get(claim).map(said).unwrap_or_default())),
        });
    };
    let work = seen.work_claims.get(claim).ok_or_else(|| Stuck::Waits("its claim".into()))?;
    let group = group_of(&plan.status, claim).cloned();
    let Some(volume) = plan.status.volumes.get_mut(claim) else { return Ok(()) };
    let since = &*volume.waits_since.get_or_insert_with(|| time(now));
    let around = Around { warnings: &seen.warnings, nodes: seen.nodes.as_deref(), settings, since, now };
    let held = reach(pod, work, around)?;
    // What is missing later is waited for anew.
    volume.waits_since = None;
    volume.node = Some(held.node.clone());
    let freeze = plan.status.freeze.as_ref().filter(|freeze| freeze.mounts.contains_key(claim));
    let frozen_ms = freeze.and_then(|freeze| freeze.held_ms);
    let moment = volume.moment.as_ref().map_or(0, |moment| moment.0.as_millisecond());
    let source = control::Source {
        name: claim.to_owned(),
        moment_ms: moment,
        claim: facts(claim, seen, frozen_ms, group),
        ..control::Source::default()
    };
    let run = plan.status.run.as_deref().and_then(|run| hex::decode(run).ok()).unwrap_or_default();
    plan.calls.push(Call::AddSource(Box::new(control::AddSourceRequest {
        run: run.into(),
        source: Some(source),
        size: size(work).unwrap_or(0),
        at: vec![control::Place { node: held.node, path: held.path }],
        skip_free: false,
    })));
    Err(Stuck::Waits("the coordinator".into()))
}

fn facts(claim: &str, seen: &Observed, frozen_ms: Option<i64>, group: Option<String>) -> String {
    let volume = seen.volumes.get(claim).cloned().unwrap_or_default();
    // What the application's claim says is found in its volume too, and the claim may be gone by now.
    let of = volume.spec.clone().unwrap_or_default();
    let spec = k8s_openapi::api::core::v1::PersistentVolumeClaimSpec {
        access_modes: of.access_modes,
        storage_class_name: of.storage_class_name,
        volume_mode: of.volume_mode,
        resources: Some(k8s_openapi::api::core::v1::VolumeResourceRequirements {
            requests: of.capacity,
            ..Default::default()
        }),
        ..Default::default()
    };
    let facts = ClaimFacts::of(&PersistentVolumeClaim { spec: Some(spec), ..Default::default() }, &volume);
    let consumer = seen.pods.get(claim).cloned();
    ClaimFacts { pod: consumer.as_ref().map(|pod| pod.name.clone()), consumer, frozen_ms, group, ..facts }.to_json()
}

fn size(claim: &PersistentVolumeClaim) -> Option<u64> {
    let capacity = claim.status.as_ref()?.capacity.as_ref()?.get("storage")?;
    bytes(&capacity.0).and_then(|bytes| u64::try_from(bytes).ok())
}
