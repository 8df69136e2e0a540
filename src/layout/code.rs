//! Names and sizes of the files under [`CODE_DIR`].

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{CODE_DIR, FILE_NAME_BYTES_MAX, FILE_NAME_DEPTH_MAX, shown};
use crate::error::{Error, ErrorKind, Result};

/// Longest file under [`CODE_DIR`], in bytes: 1 MiB.
pub const CODE_FILE_BYTES_MAX: u64 = 1 << 20;
/// Most bytes of all files under [`CODE_DIR`]: 16 MiB.
pub const CODE_BYTES_MAX: u64 = 16 << 20;
/// Most files under [`CODE_DIR`].
pub const CODE_FILES_MAX: usize = 1000;

/// Whether `path` may be a file under [`CODE_DIR`], as named from there: 1 to 7 components of
/// `[A-Za-z0-9._-]`, joined by `/`, none of them over [`FILE_NAME_BYTES_MAX`] bytes or beginning
/// with a dot.
#[must_use]
pub const fn is_code_path(path: &str) -> bool {
    let count = components(path.as_bytes());
    0 < count && count < FILE_NAME_DEPTH_MAX
}

/// Number of harmless components joined by `/`; 0 if any is not harmless.
pub(super) const fn components(mut rest: &[u8]) -> usize {
    let (mut count, mut len) = (1, 0);
    while let [byte, tail @ ..] = rest {
        match *byte {
            b'/' if len > 0 => (count, len) = (count + 1, 0),
            b'.' if len == 0 => return 0,
            b'.' | b'_' | b'-' => len += 1,
            other if other.is_ascii_alphanumeric() => len += 1,
            _ => return 0,
        }
        if len > FILE_NAME_BYTES_MAX {
            return 0;
        }
        rest = tail;
    }
    if len == 0 { 0 } else { count }
}

/// Whether a file `name` of `len` bytes can join `have`, which have `total` bytes.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a name that is not under [`CODE_DIR`], taken, or the folder of
/// another file (or below one), and beyond the limits of this module.
pub(crate) fn check_code_file<T>(
    have: &BTreeMap<String, T>,
    total: u64,
    name: &str,
    len: u64,
) -> Result<()> {
    let refuse = |fault: String| {
        let message = format!("file `{}` {fault}", shown(name));
        Err(Error::new(ErrorKind::InvalidInput, message).with_help(
            "attached files are small texts under `code/`; put anything large into a tensor",
        ))
    };
    let inside = name.strip_prefix(CODE_DIR).and_then(|rest| rest.strip_prefix('/'));
    if !inside.is_some_and(is_code_path) {
        return refuse(format!("is not named `{CODE_DIR}/…`, of letters, digits and `._-`"));
    }
    if len > CODE_FILE_BYTES_MAX {
        return refuse(format!("has {len} bytes, at most {CODE_FILE_BYTES_MAX} are allowed"));
    }
    if have.len() >= CODE_FILES_MAX || total.saturating_add(len) > CODE_BYTES_MAX {
        return refuse(format!(
            "is too much: at most {CODE_FILES_MAX} files of together {CODE_BYTES_MAX} bytes"
        ));
    }
    let ancestors = name.match_indices('/').filter_map(|(at, _)| name.get(..at));
    let below = have.range::<str, _>((Bound::Excluded(name), Bound::Unbounded));
    let mut below = below.take_while(|(other, _)| other.starts_with(name));
    let folder = |other: &str| other.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
    if have.contains_key(name) || below.any(|(other, _)| folder(other)) {
        return refuse("is there already, as a file or as a folder".to_owned());
    }
    match ancestors.into_iter().find(|folder| have.contains_key(*folder)) {
        Some(file) => refuse(format!("lies below `{file}`, which is a file")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_paths_are_harmless() {
        let (longest, deepest) = ("x".repeat(160), ["d"; 7].join("/"));
        for good in ["model.rs", "a/b-c/d_e.1", "A", &longest, &deepest] {
            assert!(is_code_path(good), "{good}");
        }
        let (longer, deeper) = ("x".repeat(161), ["d"; 8].join("/"));
        for bad in
            ["", ".", "..", ".a", "a/.b", "a/../b", "/a", "a/", "a//b", "a b", "a\\b", "é", "a\0"]
        {
            assert!(!is_code_path(bad), "{bad:?}");
        }
        assert!(!is_code_path(&longer) && !is_code_path(&deeper));
    }

    #[test]
    fn limits_and_clashes_of_code_files() {
        let mut have = BTreeMap::from([("code/a".to_owned(), ()), ("code/d/e".to_owned(), ())]);
        let check = |have: &_, total, name, len| {
            check_code_file(have, total, name, len).map_err(|e| e.kind())
        };
        let refused = Err(ErrorKind::InvalidInput);
        for good in ["code/b", "code/a.rs", "code/a-b/c", "code/d/f", "code/d-e"] {
            assert_eq!(check(&have, 0, good, CODE_FILE_BYTES_MAX), Ok(()), "{good}");
        }
        for bad in ["a", "code", "code/", "codes/a", "code/a", "code/a/b", "code/a/b/c", "code/d"] {
            assert_eq!(check(&have, 0, bad, 1), refused, "{bad}");
        }
        assert_eq!(check(&have, 0, "code/b", CODE_FILE_BYTES_MAX + 1), refused);
        assert_eq!(check(&have, CODE_BYTES_MAX - 1, "code/b", 1), Ok(()));
        assert_eq!(check(&have, CODE_BYTES_MAX, "code/b", 1), refused);
        assert_eq!(check(&have, u64::MAX, "code/b", 1), refused);
        have.extend((0..CODE_FILES_MAX).map(|n| (format!("code/n{n}"), ())));
        assert_eq!(check(&have, 0, "code/b", 1), refused);
        // A neighbour in order must not hide the folder behind it.
        let have = BTreeMap::from([("code/d-x".to_owned(), ()), ("code/d/e".to_owned(), ())]);
        assert_eq!(check(&have, 0, "code/d", 1), refused);
    }
}
