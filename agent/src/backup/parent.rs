//! The parent's extents, as a stream from the coordinator.

use std::collections::VecDeque;

use super::{BackupError, Extent, ParentExtent, Run, VolumeJob};
use crate::device::changes::Changes;
use crate::extent::ParentRange;
use crate::rpc::ParentRanges;

/// The parent's extents, in order, cut to regions.
pub(super) struct Parent {
    ranges: Option<ParentRanges>,
    /// Page digests were asked for.
    pages: bool,
    /// Ranges that were received and end after the last region that was taken.
    received: VecDeque<ParentRange>,
}

impl Parent {
    /// Page digests are asked for where they help. With a list that names single pages they do not: the list already
    /// says which pages changed.
    pub(super) async fn open(job: &VolumeJob, list: Option<&Changes>) -> Result<Self, BackupError> {
        let pages = !job.whole_chunks && list.is_none_or(Changes::is_coarse);
        // Without digests, it does not matter either which chunk lies where: an outline is enough.
        let outline = job.may_keep && !job.whole_chunks && !pages;
        let ranges = if job.has_parent { Some(job.coordinator.parent(pages, outline).await?) } else { None };
        Ok(Self { ranges, pages, received: VecDeque::new() })
    }

    /// Whether page digests were asked for.
    pub(super) fn has_pages(&self) -> bool {
        self.pages
    }

    /// The parent's extents for a region, from its start on, as far as the coordinator sends them.
    pub(super) async fn take(&mut self, offset: u64, end: u64) -> Result<Vec<ParentExtent>, BackupError> {
        while let Some(ranges) = &mut self.ranges {
            if self.received.back().is_some_and(|r| r.offset + r.len >= end) {
                break;
            }
            match ranges.next().await? {
                Some(range) => self.received.push_back(range),
                None => self.ranges = None,
            }
        }
        while self.received.front().is_some_and(|r| r.offset + r.len <= offset) {
            self.received.pop_front();
        }
        let mut extents = Vec::new();
        let mut at = offset;
        for range in self.received.iter().take_while(|r| r.offset < end) {
            if range.extents.is_empty() {
                // A hole may be longer than a region.
                let from = range.offset.max(at);
                if from != at {
                    break;
                }
                let to = (range.offset + range.len).min(end);
                let run = Run::Hole { len: u32::try_from(to - from).unwrap_or(u32::MAX) };
                extents.push(ParentExtent { extent: Extent { run, pages: Vec::new() }, retire: false });
                at = to;
            } else if range.offset == at {
                extents.extend_from_slice(&range.extents);
                at += range.len;
            } else {
                break;
            }
        }
        Ok(extents)
    }
}
