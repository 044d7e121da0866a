//! Volumes are written in waves: each takes a slot of a node while it is written, and an application may have more volumes than all
//! nodes have slots.

use std::collections::BTreeMap;

use kube::ResourceExt;
use milkrun_resources::RestoreStatus;
use milkrun_resources::restore::RestoredVolume;

use super::observe::Observed;
use super::plan::Plan;
use crate::actions::{Action, Kind};
use crate::attachments::is_attached;
use crate::consumer::Consumer;

/// Says in which wave each volume is written. A wave has at most half of the slots, so that it need not wait until all others have
/// let go. Volumes of one group are written together, however many they are; so are those of all pods that keep apart from others:
/// they do so only while all of them are there.
pub(super) fn divide(volumes: &mut BTreeMap<String, RestoredVolume>, slots: usize) {
    let at_once = slots.div_ceil(2);
    let mut groups: BTreeMap<Option<String>, Vec<&mut RestoredVolume>> = BTreeMap::new();
    for volume in volumes.values_mut() {
        let consumer = volume.consumer.as_ref().and_then(|pod| serde_json::from_str::<Consumer>(pod).ok());
        let group = Some(volume.group.clone()).filter(|_| !consumer.is_some_and(|pod| pod.keeps_apart()));
        groups.entry(group).or_default().push(volume);
    }
    let (mut wave, mut filled) = (0, 0);
    for group in groups.into_values() {
        if filled > 0 && filled + group.len() > at_once {
            (wave, filled) = (wave + 1, 0);
        }
        filled += group.len();
        group.into_iter().for_each(|volume| volume.wave = wave);
    }
}

/// The names of the volumes that are written now.
pub(super) fn present(status: &RestoreStatus) -> Vec<String> {
    let now = |(name, volume): (&String, &RestoredVolume)| (volume.wave == status.wave).then(|| name.clone());
    status.volumes.iter().filter_map(now).collect()
}

/// Whether another wave comes after this one.
pub(super) fn is_last(status: &RestoreStatus) -> bool {
    status.volumes.values().all(|volume| volume.wave <= status.wave)
}

/// Ends the present wave, whose volumes are written: once nothing holds them, the next one begins.
pub(super) fn next(seen: &Observed, plan: &mut Plan) {
    let mut waits = Vec::new();
    for name in present(&plan.status) {
        let group = &plan.status.volumes[&name].group;
        if let Some(pod) = seen.holders.get(group) {
            let delete = Action::delete(Kind::Pod, pod);
            if !delete.as_ref().is_some_and(|delete| plan.actions.contains(delete)) {
                plan.actions.extend(delete);
            }
            waits.push(format!("{name} waits for its holder {} to go", pod.name_any()));
        } else if seen.written.get(&name).is_some_and(|volume| is_attached(volume, &seen.attached)) {
            waits.push(format!("{name} waits for its volume to be detached"));
        }
    }
    if waits.is_empty() {
        plan.status.wave += 1;
        plan.status.run = None;
    }
    plan.status.message = waits.join("; ");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_stay_together_and_waves_are_no_larger_than_they_must_be() {
        let volume = |group: &str| RestoredVolume { group: group.into(), ..RestoredVolume::default() };
        let of =
            [("a", "one"), ("b", "one"), ("c", "two"), ("d", "three"), ("e", "three"), ("f", "three"), ("g", "two")];
        let volumes: BTreeMap<String, RestoredVolume> = of.iter().map(|(n, g)| ((*n).to_owned(), volume(g))).collect();
        let cases = [(32, [0; 7]), (10, [0, 0, 1, 0, 0, 0, 1]), (4, [0, 0, 2, 1, 1, 1, 2]), (1, [0, 0, 2, 1, 1, 1, 2])];
        for (slots, waves) in cases {
            let mut divided = volumes.clone();
            divide(&mut divided, slots);
            let are: Vec<i32> = divided.values().map(|volume| volume.wave).collect();
            assert_eq!(are, waves, "{slots} slots");
        }
    }

    #[test]
    fn pods_that_keep_apart_are_placed_together() {
        let term = r#"[{"topologyKey": "zone", "labelSelector": {}}]"#;
        let apart = format!(
            r#"{{"affinity": {{"podAntiAffinity": {{"requiredDuringSchedulingIgnoredDuringExecution": {term}}}}}}}"#
        );
        let volume = |group: &str, consumer: &str| RestoredVolume {
            group: group.into(),
            consumer: Some(consumer.into()),
            ..RestoredVolume::default()
        };
        let of = [("a", "db-0", apart.as_str()), ("b", "cache", "{}"), ("c", "db-1", &apart), ("d", "db-2", &apart)];
        let mut volumes: BTreeMap<String, RestoredVolume> =
            of.iter().map(|(n, g, c)| ((*n).to_owned(), volume(g, c))).collect();
        divide(&mut volumes, 2);
        let are: Vec<i32> = volumes.values().map(|volume| volume.wave).collect();
        assert_eq!(are, [0, 1, 0, 0]);
    }
}
