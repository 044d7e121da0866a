//! How a volume lies in the repository: counted leaf by leaf as its map is built, recorded in the root, shown to people.

use std::collections::HashMap;

use milkrun_repository::id::PackId;
use milkrun_repository::point::root::Layout;
use milkrun_repository::restore_plan::{Limits, WINDOW_LEAVES, plan};
use milkrun_repository::volume_map::{Extent, Leaf};

/// What a restore would do so far.
#[derive(Default)]
pub(super) struct Effort {
    window: Vec<(u64, Extent)>,
    /// Leaves and holes.
    steps: usize,
    in_hole: bool,
    ranges: u64,
    opened_bytes: u64,
}

impl Effort {
    /// The next leaf, at this offset.
    pub(super) fn add(&mut self, offset: u64, leaf: &Leaf) {
        let mut at = offset;
        for extent in &leaf.extents {
            self.window.push((at, *extent));
            at += u64::from(extent.len());
        }
        self.in_hole = false;
        self.step();
    }

    /// A hole where a leaf would be: a step of a restore like a leaf, however long.
    pub(super) fn hole(&mut self) {
        if !std::mem::replace(&mut self.in_hole, true) {
            self.step();
        }
    }

    fn step(&mut self) {
        self.steps += 1;
        if self.steps == WINDOW_LEAVES {
            self.close();
        }
    }

    /// All of it.
    pub(super) fn finish(mut self) -> Layout {
        self.close();
        Layout { ranges: self.ranges, opened_bytes: self.opened_bytes, ..Layout::default() }
    }

    fn close(&mut self) {
        let mut opened: HashMap<(PackId, u32), u32> = HashMap::new();
        for (_, extent) in &self.window {
            if let Extent::Data { place, .. } = extent {
                opened.insert((place.pack, place.slot), place.plain_len);
            }
        }
        self.opened_bytes += opened.values().map(|&len| u64::from(len)).sum::<u64>();
        self.ranges += plan(&self.window, Limits::DEFAULT, false).len() as u64;
        self.window.clear();
        self.steps = 0;
    }
}
