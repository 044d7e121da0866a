//! Joining ranges that overlap or touch.

use std::ops::Range;

/// Makes `last` the union of both, if `next`, which begins no earlier, overlaps or touches it. Returns whether it does.
fn join<T: Copy + Ord>(last: &mut Range<T>, next: &Range<T>) -> bool {
    let joins = next.start <= last.end;
    if joins {
        last.end = last.end.max(next.end);
    }
    joins
}

/// Puts ranges in order, and joins those that overlap or touch.
pub(crate) fn merge<T: Copy + Ord>(ranges: &mut Vec<Range<T>>) {
    ranges.sort_unstable_by_key(|r| r.start);
    ranges.dedup_by(|next, last| join(last, next));
}

/// Adds a range that begins no earlier than the last one, and joins the two if they overlap or touch.
pub(crate) fn push<T: Copy + Ord>(ranges: &mut Vec<Range<T>>, next: Range<T>) {
    if !ranges.last_mut().is_some_and(|last| join(last, &next)) {
        ranges.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_or_touch_are_joined() {
        let mut ranges = vec![8..9, 0..4, 2..3, 4..5, 6..7];
        merge(&mut ranges);
        assert_eq!(ranges, [0..5, 6..7, 8..9]);
        push(&mut ranges, 9..10);
        push(&mut ranges, 12..13);
        push(&mut ranges, 12..15);
        assert_eq!(ranges, [0..5, 6..7, 8..10, 12..15]);
    }
}
