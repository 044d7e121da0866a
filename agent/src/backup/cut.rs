//! Cuts a region into extents. If there is a parent, its extents are compared first: where a chunk still has its id, or
//! a page its digest, nothing is cut, looked up, compressed or sent. Long changed runs go to the cutter. Single changed
//! pages are put together into one new chunk, and the rest of the old chunk stays in use by reference.

use std::ops::Range;

use milkrun_repository::chunk::page_cutter::PageCutter;
use milkrun_repository::chunk::pages::PageDigest;
use milkrun_repository::chunk::{PAGE, Piece, is_zero};
use milkrun_repository::id::ChunkId;
use milkrun_repository::keys::DomainKey;

use super::region_bytes::RegionBytes;
use super::{Extent, ParentExtent, Run};

/// How regions are cut.
#[derive(Clone)]
pub struct Cutting {
    /// Cuts changed runs.
    pub cutter: PageCutter,
    /// Identifies chunks.
    pub domain: DomainKey,
    /// The key that decides where the cutter cuts.
    pub seed: u64,
    /// A chunk is stored whole if one of its pages changed, and no page digests are kept.
    pub whole_chunks: bool,
    /// An unchanged run may be reported as [`Run::Kept`], by its length alone.
    pub may_keep: bool,
    /// The parent's page digests were asked for: where it has none, they are computed and reported.
    pub learn: bool,
}

/// A region after cutting.
#[derive(Debug, PartialEq, Eq)]
pub struct CutRegion {
    /// Its extents, in order; none if it is unchanged.
    pub extents: Vec<Extent>,
    /// Whether it equals the parent's region byte for byte, and there are no new page digests to report.
    pub unchanged: bool,
    /// Chunks that the parent does not have here.
    pub fresh: Vec<NewChunk>,
}

/// A chunk that is to be stored, unless it is known already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewChunk {
    /// Its id.
    pub id: ChunkId,
    /// The parts of the region that it consists of, in order: (offset, bytes). Whole pages, except the last.
    pub parts: Vec<(usize, usize)>,
}

impl NewChunk {
    /// Its bytes.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|p| p.1).sum()
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Its plaintext: a slice of the region, or copied together in `scratch`.
    pub fn plaintext<'a>(&self, region: &'a RegionBytes, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        region.together(&self.parts, scratch)
    }
}

/// A part of a region that is as in the parent, or one that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    from: usize,
    to: usize,
    /// The number of the parent's extent that it is an unchanged part of; `None`: it changed.
    extent: Option<usize>,
}

/// Cuts a region of an image. `parent` are the parent's extents at the same place, empty if there are none; they may
/// cover less than the region. What was not read of the region counts as unchanged: a changed-block list says so.
pub fn cut_region(bytes: &RegionBytes, parent: &[ParentExtent], how: &Cutting) -> CutRegion {
    let compared = Compared::compare(bytes, parent, how);
    let covered: usize = parent.iter().map(|p| p.extent.run.len() as usize).sum();
    let changed = compared.segments.iter().any(|s| s.extent.is_none());
    let learned = compared.digests.iter().any(|d| !d.is_empty());
    if !changed && !learned && covered == bytes.len() && !parent.is_empty() {
        return CutRegion { extents: Vec::new(), unchanged: true, fresh: Vec::new() };
    }
    let mut out = RegionBuilder { bytes, how, extents: Vec::new(), fresh: Vec::new(), open: Vec::new(), open_bytes: 0 };
    let mut segments = compared.segments.iter().peekable();
    let anew = |s: &Segment| s.extent.is_none_or(|n| changed && parent[n].retire);
    while let Some(segment) = segments.next() {
        match segment.extent {
            Some(n) if !anew(segment) => out.keep(&parent[n], compared.starts[n], segment, &compared.digests[n]),
            _ => {
                let mut to = segment.to;
                while let Some(next) = segments.next_if(|s| anew(s)) {
                    to = next.to;
                }
                out.change(segment.from, to);
            }
        }
    }
    out.close();
    CutRegion { extents: out.extents, unchanged: false, fresh: out.fresh }
}

/// A region compared with its parent.
struct Compared {
    segments: Vec<Segment>,
    /// Where each extent of the parent begins.
    starts: Vec<usize>,
    /// For each extent: digests of all its pages, if the parent had none and they were computed here.
    digests: Vec<Vec<PageDigest>>,
}

impl Compared {
    fn compare(bytes: &RegionBytes, parent: &[ParentExtent], how: &Cutting) -> Self {
        let mut this = Self { segments: Vec::new(), starts: Vec::new(), digests: Vec::new() };
        let mut at = 0;
        for (n, p) in parent.iter().enumerate() {
            let end = at + p.extent.run.len() as usize;
            // An extent that ends within a page is compared only at the end of the region: nothing behind it would be
            // page-aligned.
            if end > bytes.len() || (!end.is_multiple_of(PAGE) && end != bytes.len()) {
                break;
            }
            this.starts.push(at);
            this.digests.push(Vec::new());
            let mut from = at;
            for part in bytes.present(at..end) {
                this.push(from, part.start, Some(n));
                this.compare_part(bytes, part.clone(), n, p, at..end, how);
                from = part.end;
            }
            this.push(from, end, Some(n));
            at = end;
        }
        this.push(at, bytes.len(), None);
        this
    }

    /// Compares a part of an extent that was read.
    fn compare_part(
        &mut self,
        bytes: &RegionBytes,
        part: Range<usize>,
        n: usize,
        p: &ParentExtent,
        all: Range<usize>,
        how: &Cutting,
    ) {
        let (from, to) = (part.start, part.end);
        let here = bytes.at(part.clone());
        match p.extent.run {
            Run::Hole { .. } if is_zero(here) => self.push(from, to, Some(n)),
            Run::Hole { .. } if how.whole_chunks => self.push(from, to, None),
            Run::Hole { .. } => self.compare_pages(part, n, |at, end| is_zero(bytes.at(at..end))),
            // The parent's content is not known here.
            Run::Kept { .. } => self.push(from, to, None),
            Run::Chunk { id, len, chunk_offset, chunk_len } => {
                let whole = part == all && chunk_offset == 0 && len == chunk_len;
                let offset = chunk_offset + narrow(from - all.start);
                let (same, now) = match (whole, how.whole_chunks) {
                    (true, true) => (how.domain.identify(here) == id, Vec::new()),
                    (false, true) => (false, Vec::new()),
                    (true, false) => {
                        let (now_id, now) = how.domain.identify_pages(here);
                        (now_id == id, now)
                    }
                    // The chunk's id says nothing about a part of the chunk.
                    (false, false) if p.extent.pages.is_empty() => (false, Vec::new()),
                    (false, false) => (false, how.domain.page_digests(here, offset)),
                };
                if same {
                    if p.extent.pages.is_empty() && how.learn {
                        self.digests[n] = now;
                    }
                    return self.push(from, to, Some(n));
                }
                let first = (from - all.start) / PAGE;
                match p.extent.pages.get(first..first + now.len()) {
                    Some(then) if !now.is_empty() => {
                        self.compare_pages(part, n, |at, _| now[(at - from) / PAGE] == then[(at - from) / PAGE]);
                    }
                    _ => self.push(from, to, None),
                }
            }
        }
    }

    /// Compares page by page.
    fn compare_pages(&mut self, part: Range<usize>, n: usize, same: impl Fn(usize, usize) -> bool) {
        for at in part.clone().step_by(PAGE) {
            let end = (at + PAGE).min(part.end);
            self.push(at, end, same(at, end).then_some(n));
        }
    }

    fn push(&mut self, from: usize, to: usize, extent: Option<usize>) {
        match self.segments.last_mut() {
            _ if from >= to => {}
            Some(last) if last.extent == extent => last.to = to,
            _ => self.segments.push(Segment { from, to, extent }),
        }
    }
}

/// Collects a region's extents and new chunks.
struct RegionBuilder<'a> {
    bytes: &'a RegionBytes,
    how: &'a Cutting,
    extents: Vec<Extent>,
    fresh: Vec<NewChunk>,
    /// Changed pages that will be put together into one chunk: (number of the extent, offset, bytes).
    open: Vec<(usize, usize, usize)>,
    open_bytes: usize,
}

impl RegionBuilder<'_> {
    /// Adds an unchanged part of a parent's extent. The extent begins at `start` of the region.
    fn keep(&mut self, p: &ParentExtent, start: usize, segment: &Segment, learned: &[PageDigest]) {
        let len = narrow(segment.to - segment.from);
        let skipped = segment.from - start;
        match p.extent.run {
            Run::Hole { .. } => self.hole(len),
            Run::Chunk { .. } if self.how.may_keep && learned.is_empty() => self.kept(len),
            Run::Kept { .. } => self.kept(len),
            Run::Chunk { id, chunk_offset, chunk_len, .. } => {
                let run = Run::Chunk { len, id, chunk_offset: chunk_offset + narrow(skipped), chunk_len };
                let first = skipped / PAGE;
                let pages = learned.get(first..first + (len as usize).div_ceil(PAGE)).unwrap_or_default().to_vec();
                self.extents.push(Extent { run, pages });
            }
        }
    }

    fn kept(&mut self, more: u32) {
        match self.extents.last_mut() {
            Some(Extent { run: Run::Kept { len }, .. }) => *len += more,
            _ => self.extents.push(Extent { run: Run::Kept { len: more }, pages: Vec::new() }),
        }
    }

    /// Adds a run that changed.
    fn change(&mut self, from: usize, to: usize) {
        let cutter = &self.how.cutter;
        if self.how.whole_chunks || to - from >= cutter.min_pages as usize * PAGE {
            return self.cut(from, to);
        }
        if is_zero(self.bytes.at(from..to)) {
            return self.hole(narrow(to - from));
        }
        if self.open_bytes + (to - from) > cutter.max_pages as usize * PAGE {
            self.close();
        }
        self.open.push((self.extents.len(), from, to - from));
        self.open_bytes += to - from;
        // A placeholder until the chunk is complete.
        self.extents.push(Extent { run: Run::Hole { len: narrow(to - from) }, pages: Vec::new() });
    }

    fn cut(&mut self, from: usize, to: usize) {
        let mut pieces = Vec::new();
        let bytes = self.bytes.at(from..to);
        self.how.cutter.cut(self.how.seed, bytes, &mut pieces);
        for piece in pieces {
            match piece {
                Piece::Hole { len, .. } => self.hole(narrow(len)),
                Piece::Data { offset, len } => {
                    let start = from + offset;
                    let (id, pages) = self.how.identify(&bytes[offset..offset + len]);
                    self.fresh.push(NewChunk { id, parts: vec![(start, len)] });
                    self.extents.push(Extent { run: whole_chunk(id, len), pages });
                }
            }
        }
    }

    /// Puts the open changed pages together into one chunk.
    fn close(&mut self) {
        let open = std::mem::take(&mut self.open);
        let chunk_len = narrow(std::mem::take(&mut self.open_bytes));
        if open.is_empty() {
            return;
        }
        let parts: Vec<(usize, usize)> = open.iter().map(|&(_, at, len)| (at, len)).collect();
        let mut scratch = Vec::new();
        let (id, pages) = self.how.identify(self.bytes.together(&parts, &mut scratch));
        let mut chunk_offset = 0;
        for (n, _, len) in open {
            let first = chunk_offset as usize / PAGE;
            self.extents[n] = Extent {
                run: Run::Chunk { len: narrow(len), id, chunk_offset, chunk_len },
                pages: pages[first..first + len.div_ceil(PAGE)].to_vec(),
            };
            chunk_offset += narrow(len);
        }
        self.fresh.push(NewChunk { id, parts });
    }

    /// Adds a hole. Neighbouring holes become one, unless the one before is a placeholder.
    fn hole(&mut self, more: u32) {
        let placeholder = self.open.last().is_some_and(|o| o.0 + 1 == self.extents.len());
        match self.extents.last_mut() {
            Some(Extent { run: Run::Hole { len }, .. }) if !placeholder => *len += more,
            _ => self.extents.push(Extent { run: Run::Hole { len: more }, pages: Vec::new() }),
        }
    }
}

impl Cutting {
    fn identify(&self, chunk: &[u8]) -> (ChunkId, Vec<PageDigest>) {
        if self.whole_chunks { (self.domain.identify(chunk), Vec::new()) } else { self.domain.identify_pages(chunk) }
    }
}

/// A run that is a whole chunk.
pub fn whole_chunk(id: ChunkId, len: usize) -> Run {
    Run::Chunk { len: narrow(len), id, chunk_offset: 0, chunk_len: narrow(len) }
}

// Regions are far shorter than 4 GiB.
fn narrow(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(super) mod tests;
