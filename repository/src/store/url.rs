//! The location of a repository, as people write it: `file:///path` or `s3://bucket/prefix`.

use std::path::PathBuf;
use std::str::FromStr;

/// A parsed repository URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// A directory.
    Directory(PathBuf),
    /// A bucket and a prefix (without slashes at its ends; may be empty).
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix of all keys.
        prefix: String,
    },
}

/// Why a URL was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Neither `file://` nor `s3://`.
    #[error("{0:?} is no repository: write a path that begins with / or ./, file:///path or s3://bucket/prefix")]
    Scheme(String),
    /// `file://` without an absolute path.
    #[error("{0:?} needs an absolute path: file:///path")]
    Relative(String),
    /// `s3://` without a sound bucket name.
    #[error("{0:?} needs a bucket of 3 to 63 lower-case letters, digits, dots or hyphens: s3://bucket/prefix")]
    Bucket(String),
    /// A prefix that is no sound path.
    #[error("the prefix of {0:?} may not have empty, '.' or '..' parts")]
    Prefix(String),
}

impl FromStr for StoreUrl {
    type Err = UrlError;

    fn from_str(s: &str) -> Result<Self, UrlError> {
        if let Some(path) = s.strip_prefix("file://") {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(UrlError::Relative(s.to_owned()));
            }
            return Ok(Self::Directory(PathBuf::from(path)));
        }
        // A plain path is a directory if it can't be mistaken for anything else.
        if !s.contains('\0') && !s.contains("://") && ["/", "./", "../"].iter().any(|start| s.starts_with(start)) {
            let path = std::path::absolute(s).map_err(|_| UrlError::Relative(s.to_owned()))?;
            return Ok(Self::Directory(path));
        }
        let rest = s.strip_prefix("s3://").ok_or_else(|| UrlError::Scheme(s.to_owned()))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(letter) {
            return Err(UrlError::Bucket(s.to_owned()));
        }
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() && prefix.split('/').any(|p| p.is_empty() || p == "." || p == "..") {
            return Err(UrlError::Prefix(s.to_owned()));
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl std::fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_people_write_and_says_what_is_wrong() {
        assert_eq!("file:///srv/b".parse(), Ok(StoreUrl::Directory("/srv/b".into())));
        assert_eq!("s3://backups/a/b/".parse(), Ok(StoreUrl::S3 { bucket: "backups".into(), prefix: "a/b".into() }));
        assert!(matches!("ftp://x".parse::<StoreUrl>(), Err(UrlError::Scheme(_))));
        assert_eq!("/srv/b".parse(), Ok(StoreUrl::Directory("/srv/b".into())));
        let here = std::env::current_dir().unwrap();
        assert_eq!("./b".parse(), Ok(StoreUrl::Directory(here.join("b"))));
        assert!(matches!("backups".parse::<StoreUrl>(), Err(UrlError::Scheme(_))));
        assert!(matches!("file://srv".parse::<StoreUrl>(), Err(UrlError::Relative(_))));
        assert!(matches!("s3://l3/x".parse::<StoreUrl>(), Err(UrlError::Bucket(_))));
        assert!(matches!("s3://backups/../x".parse::<StoreUrl>(), Err(UrlError::Prefix(_))));
    }
}
