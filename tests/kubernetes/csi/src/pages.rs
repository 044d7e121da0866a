//! Lists that are read page by page. A page's token is the id of the next entry.

use tonic::Status;

/// A page of `all`, and the token of the next one, or nothing.
pub(crate) fn page<T>(
    all: Vec<T>,
    id: impl Fn(&T) -> &str,
    token: &str,
    max_entries: i32,
) -> Result<(Vec<T>, String), Status> {
    let max = usize::try_from(max_entries).map_err(|_| Status::invalid_argument("max_entries is negative"))?;
    let from = if token.is_empty() {
        0
    } else {
        all.iter()
            .position(|entry| id(entry) >= token)
            .ok_or_else(|| Status::aborted(format!("no page begins at {token}")))?
    };
    let mut rest: Vec<T> = all.into_iter().skip(from).collect();
    let next = if max > 0 && rest.len() > max { id(&rest[max]).to_owned() } else { String::new() };
    if max > 0 {
        rest.truncate(max);
    }
    Ok((rest, next))
}

#[cfg(test)]
mod tests {
    use super::page;

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let all = || vec!["a", "b", "c"];
        let (first, next) = page(all(), |e| e, "", 2).unwrap();
        assert_eq!((first, next.as_str()), (vec!["a", "b"], "c"));
        let (rest, end) = page(all(), |e| e, &next, 2).unwrap();
        assert_eq!((rest, end.as_str()), (vec!["c"], ""));
        assert!(page(all(), |e| e, "nonsense", 2).is_err());
    }
}
