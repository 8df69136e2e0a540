//! Making checksums and hashes again after edits, as somebody would who writes every byte.

use base64ct::{Base64, Encoding};
use tch_checkpoint::manifest::{Manifest, hash16};

use super::bases::{AT, Base, Files};

const CHECKSUM: usize = 32;
const BEFORE_MANIFEST: &[u8] = b"\"tch_checkpoint.manifest\":\"";

/// Makes the manifest's checksum again; with `hashes` also what it says of other files.
pub(crate) fn reseal(base: &Base, files: &mut Files, hashes: bool) {
    if base.at == AT {
        let at = format!("{AT}/manifest.bin");
        let replaced = if hashes { hashes_of_directory(base, files, &at) } else { Vec::new() };
        if let Some(manifest) = files.get_mut(&at) {
            sealed(manifest, &replaced);
        }
    } else if let (Some(was), Some(file)) = (base.files.get(base.at), files.get_mut(base.at)) {
        reseal_file(was, file, hashes);
    }
}

type Replaced = Vec<([u8; 16], [u8; 16])>;

/// Puts new hashes for old ones, and the checksum behind it all.
fn sealed(manifest: &mut Vec<u8>, replaced: &Replaced) {
    let Some(covered) = manifest.len().checked_sub(CHECKSUM) else { return };
    manifest.truncate(covered);
    for (old, new) in replaced {
        let places: Vec<usize> =
            manifest.windows(16).enumerate().filter(|(_, w)| w == old).map(|(at, _)| at).collect();
        for at in places {
            manifest[at..at + 16].copy_from_slice(new);
        }
    }
    let checksum = blake3::hash(manifest);
    manifest.extend(checksum.as_bytes());
}

/// Old and new hash of each header, of the sums of each file, and of each file that is hashed whole.
fn hashes_of_directory(base: &Base, files: &Files, at: &str) -> Replaced {
    let Some(Ok(manifest)) = base.files.get(at).map(|bytes| Manifest::parse(bytes)) else {
        return Vec::new();
    };
    let part = |files: &Files, name: &str, begin: u64, end: u64| {
        let bytes = files.get(&format!("{AT}/{name}")).map_or(&[][..], Vec::as_slice);
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        hash16(&bytes[place(begin)..place(end)])
    };
    let both = |name: &str, begin, end| {
        (part(&base.files, name, begin, end), part(files, name, begin, end))
    };
    let mut replaced = Vec::new();
    for file in manifest.data_files() {
        replaced.push(both(&file.name, 0, file.data_start));
        let sums = &manifest.sums_files()[file.sums_file as usize].name;
        replaced.push(both(sums, file.sums_begin, file.sums_begin + file.sums_count * 16));
    }
    for other in manifest.sums_files().iter().chain(manifest.other_files()) {
        replaced.push(both(&other.name, 0, u64::MAX));
    }
    replaced
}

fn reseal_file(was: &[u8], file: &mut [u8], hashes: bool) {
    let Some((begin, end)) = manifest_text(file) else { return };
    let decoded =
        std::str::from_utf8(&file[begin..end]).ok().and_then(|t| Base64::decode_vec(t).ok());
    let Some(mut manifest) = decoded else { return };
    let mut replaced = Vec::new();
    if hashes && let (Some(old), Some(new)) = (header_hash(was), header_hash(file)) {
        replaced.push((old, new));
    }
    sealed(&mut manifest, &replaced);
    let text = Base64::encode_string(&manifest);
    if text.len() == end - begin {
        file[begin..end].copy_from_slice(text.as_bytes());
    }
}

/// Where the manifest's text lies.
fn manifest_text(file: &[u8]) -> Option<(usize, usize)> {
    let len = BEFORE_MANIFEST.len();
    let begin = file.windows(len).position(|window| window == BEFORE_MANIFEST)? + len;
    Some((begin, begin + file[begin..].iter().position(|byte| *byte == b'"')?))
}

/// Of the header without the manifest.
fn header_hash(file: &[u8]) -> Option<[u8; 16]> {
    let (begin, end) = manifest_text(file)?;
    let json = u64::from_le_bytes(*file.first_chunk()?);
    let header = usize::try_from(json)
        .ok()?
        .checked_add(8)
        .filter(|len| (end..=file.len()).contains(len))?;
    Some(hash16(&[&file[..begin], &file[end..header]].concat()))
}
