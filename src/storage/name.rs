//! The one rule for names in a directory: a single component.

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::shown;

/// The longest name of an entry, in bytes, on every file system that matters.
const NAME_BYTES_MAX: usize = 255;

/// Accepts `name` if it is one component, so that it can never lead out of `directory`.
pub(super) fn check_name(name: &str, directory: &Path) -> Result<()> {
    let why = match name {
        "" => "is empty",
        "." | ".." => "names no entry",
        _ if name.contains('/') => "holds a slash",
        _ if name.contains('\0') => "holds a NUL",
        _ if name.len() > NAME_BYTES_MAX => "is longer than 255 bytes",
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::InvalidInput, format!("the name {name:?} {why}"))
        .with_path(directory)
        .with_help("use a single name, not a path"))
}

/// Accepts `target` if it can be the text of a link.
pub(super) fn check_link_text(target: &str, link: &Path) -> Result<()> {
    if target.is_empty() || target.contains('\0') {
        let message = format!("{target:?} cannot be the text of a link");
        return Err(Error::new(ErrorKind::InvalidInput, message)
            .with_path(link)
            .with_help("name what the link points to"));
    }
    Ok(())
}

/// Refuses an address. As a path it would be a directory here, called like what its user must not
/// tell. Whoever cuts a path asks before that: what is left need not look like an address.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub(crate) fn check_is_path(path: &Path) -> Result<()> {
    let text = path.to_string_lossy();
    let Some(scheme) = shown::scheme(&text) else { return Ok(()) };
    let message = format!("this is an address (`{scheme}://`), and no path");
    Err(Error::new(ErrorKind::InvalidInput, message)
        .with_path(path)
        .with_help("mount the storage, and name a directory of this file system"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_components_are_names() {
        let longest = "n".repeat(255);
        for good in ["a", ".hidden", "...", "a b", "é", "a\\b", &longest] {
            assert_eq!(check_name(good, Path::new("d")), Ok(()), "{good:?}");
        }
        let too_long = "n".repeat(256);
        for bad in ["", ".", "..", "/", "a/b", "/a", "a/", "a\0b", &too_long] {
            let error = check_name(bad, Path::new("d")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
    }

    #[test]
    fn a_link_needs_a_text() {
        assert_eq!(check_link_text("../a", Path::new("l")), Ok(()));
        for bad in ["", "a\0"] {
            let error = check_link_text(bad, Path::new("l")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
    }
}
