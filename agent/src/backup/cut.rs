//! What a region is made of. With a parent, its extents are compared first: where a chunk still has its id, or a page its
//! digest, nothing is cut, looked up, compressed or sent. Of what changed, long runs go to the cutter; single pages are put
//! together into a chunk of their own, and the rest of the old chunk stays in use by reference.

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
    /// Where changed runs are cut.
    pub cutter: PageCutter,
    /// Identifies chunks.
    pub domain: DomainKey,
    /// Moves the cuts.
    pub seed: u64,
    /// A chunk of which a page changed is stored whole, and no digests of pages are kept.
    pub whole_chunks: bool,
    /// What is as the parent has it need not be said in full.
    pub may_keep: bool,
    /// The parent was asked for digests: where it has none, they are learned.
    pub learn: bool,
}

/// A region after cutting.
#[derive(Debug, PartialEq, Eq)]
pub struct CutRegion {
    /// Its extents, in order; none if it is unchanged.
    pub extents: Vec<Extent>,
    /// Whether it is the parent's region to the byte, and nothing is to be learned about it.
    pub unchanged: bool,
    /// Chunks that the parent does not have here.
    pub fresh: Vec<Fresh>,
}

/// A chunk to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Its id.
    pub id: ChunkId,
    /// Of which parts of the region it consists, in order: (offset, bytes). Whole pages, but for the last.
    pub parts: Vec<(usize, usize)>,
}

impl Fresh {
    /// Its bytes.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|p| p.1).sum()
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Its plaintext: where it lies in the region, or put together in `scratch`.
    pub fn plaintext<'a>(&self, region: &'a RegionBytes, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        region.together(&self.parts, scratch)
    }
}

/// A part of a region: as the parent has it, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    from: usize,
    to: usize,
    /// The extent of the parent that it is a part of; `None`: it changed.
    same: Option<usize>,
}

/// Cuts a region of an image. `parent` are the extents of the parent at the same place, empty if there are none; they may
/// cover less than the region. What of the region was not read is the parent's by somebody's word.
pub fn cut_region(bytes: &RegionBytes, parent: &[ParentExtent], how: &Cutting) -> CutRegion {
    let compared = Compared::compare(bytes, parent, how);
    let covered: usize = parent.iter().map(|p| p.extent.run.len() as usize).sum();
    let changed = compared.segments.iter().any(|s| s.same.is_none());
    let learned = compared.digests.iter().any(|d| !d.is_empty());
    if !changed && !learned && covered == bytes.len() && !parent.is_empty() {
        return CutRegion { extents: Vec::new(), unchanged: true, fresh: Vec::new() };
    }
    let mut out = Out { bytes, how, extents: Vec::new(), fresh: Vec::new(), open: Vec::new(), open_bytes: 0 };
    let mut segments = compared.segments.iter().peekable();
    let anew = |s: &Segment| s.same.is_none_or(|n| changed && parent[n].retire);
    while let Some(segment) = segments.next() {
        match segment.same {
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

/// A region against its parent.
struct Compared {
    segments: Vec<Segment>,
    /// Where each extent of the parent begins.
    starts: Vec<usize>,
    /// Of each extent: digests of all its pages, where the parent had none and they came to be known.
    digests: Vec<Vec<PageDigest>>,
}

impl Compared {
    fn compare(bytes: &RegionBytes, parent: &[ParentExtent], how: &Cutting) -> Self {
        let mut this = Self { segments: Vec::new(), starts: Vec::new(), digests: Vec::new() };
        let mut at = 0;
        for (n, p) in parent.iter().enumerate() {
            let end = at + p.extent.run.len() as usize;
            // What ends within a page is compared only where the region ends with it: behind it nothing would lie on pages.
            if end > bytes.len() || (!end.is_multiple_of(PAGE) && end != bytes.len()) {
                break;
            }
            this.starts.push(at);
            this.digests.push(Vec::new());
            let mut from = at;
            for part in bytes.present(at..end) {
                this.push(from, part.start, Some(n));
                this.part(bytes, part.clone(), n, p, at..end, how);
                from = part.end;
            }
            this.push(from, end, Some(n));
            at = end;
        }
        this.push(at, bytes.len(), None);
        this
    }

    /// A part of an extent that was read.
    fn part(
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
            Run::Hole { .. } => self.pages(part, n, |at, end| is_zero(bytes.at(at..end))),
            // What it was is not known.
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
                    // What a part of a chunk was can't be told by the chunk's id.
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
                        self.pages(part, n, |at, _| now[(at - from) / PAGE] == then[(at - from) / PAGE]);
                    }
                    _ => self.push(from, to, None),
                }
            }
        }
    }

    /// Page by page.
    fn pages(&mut self, part: Range<usize>, n: usize, same: impl Fn(usize, usize) -> bool) {
        for at in part.clone().step_by(PAGE) {
            let end = (at + PAGE).min(part.end);
            self.push(at, end, same(at, end).then_some(n));
        }
    }

    fn push(&mut self, from: usize, to: usize, same: Option<usize>) {
        match self.segments.last_mut() {
            _ if from >= to => {}
            Some(last) if last.same == same => last.to = to,
            _ => self.segments.push(Segment { from, to, same }),
        }
    }
}

/// What comes out.
struct Out<'a> {
    bytes: &'a RegionBytes,
    how: &'a Cutting,
    extents: Vec<Extent>,
    fresh: Vec<Fresh>,
    /// Changed pages that wait to be put together: which extent, and where they are.
    open: Vec<(usize, usize, usize)>,
    open_bytes: usize,
}

impl Out<'_> {
    /// A part of a parent's extent, which begins at `start` of the region.
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

    /// A run that is not as the parent has it.
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
        // Holds the place until the chunk is complete.
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
                    self.fresh.push(Fresh { id, parts: vec![(start, len)] });
                    self.extents.push(Extent { run: whole_chunk(id, len), pages });
                }
            }
        }
    }

    /// Puts the changed pages that wait together into one chunk.
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
        self.fresh.push(Fresh { id, parts });
    }

    /// Neighbouring holes become one, unless changed pages wait for one of them.
    fn hole(&mut self, more: u32) {
        let waits = self.open.last().is_some_and(|o| o.0 + 1 == self.extents.len());
        match self.extents.last_mut() {
            Some(Extent { run: Run::Hole { len }, .. }) if !waits => *len += more,
            _ => self.extents.push(Extent { run: Run::Hole { len: more }, pages: Vec::new() }),
        }
    }
}

impl Cutting {
    fn identify(&self, chunk: &[u8]) -> (ChunkId, Vec<PageDigest>) {
        if self.whole_chunks { (self.domain.identify(chunk), Vec::new()) } else { self.domain.identify_pages(chunk) }
    }
}

/// A chunk that is used whole.
pub fn whole_chunk(id: ChunkId, len: usize) -> Run {
    Run::Chunk { len: narrow(len), id, chunk_offset: 0, chunk_len: narrow(len) }
}

// Regions are far shorter than 4 GiB.
fn narrow(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(super) mod tests;
