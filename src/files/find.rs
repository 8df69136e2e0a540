//! From a name to a manifest.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::files::foreign::{self, Parts, PlainFile};
use crate::layout::{self, CheckpointName};
use crate::manifest::{Form, Manifest};
use crate::pytorch::NameRules;
use crate::shard::{HeaderTensor, SingleFile, read_single};
use crate::storage::{Directory, ReadFile, Storage};
use crate::tensor::Component;

/// A checkpoint that is a file, or several.
pub(crate) struct FoundFile {
    /// The name under which it was found.
    pub(crate) entry: String,
    /// The directory in which its files lie.
    pub(crate) dir: Arc<dyn Directory>,
    pub(crate) manifest: Manifest,
}

/// The file of this name with its siblings, or that of the component `model` under this stem;
/// `None` if there is neither. `unverified` accepts files of other tools.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for damage and for a sibling that is missing, [`ErrorKind::Mismatch`]
/// for one of another save; [`ErrorKind::Incompatible`] for a file of another tool.
pub(crate) fn find(
    parent: &Arc<dyn Directory>,
    name: &CheckpointName,
    unverified: bool,
) -> Result<Option<FoundFile>> {
    let found = |entry: &CheckpointName, dir: &Arc<dyn Directory>, manifest| {
        Ok(Some(FoundFile { entry: entry.to_string(), dir: dir.clone(), manifest }))
    };
    if let Some(manifest) = open_with_siblings(parent.as_ref(), name, unverified)? {
        return found(name, parent, manifest);
    }
    let of_model = layout::component_file(name, &Component::model()).ok();
    let opened = of_model.map(|file| {
        open_with_siblings(parent.as_ref(), &file, unverified).map(|opened| (file, opened))
    });
    // Only our own files belong to a stem: another tool's has just a name like that.
    if let Some((file, Some(manifest))) = opened.transpose()?
        && *manifest.form() != Form::Plain
    {
        return found(&file, parent, manifest);
    }
    if !unverified {
        return Ok(None);
    }
    let rules = NameRules { is_lenient: true, ..NameRules::default() };
    if let Some(foreign) = foreign::open_pytorch(parent, name.as_str(), rules)? {
        return found(name, &foreign.dir, foreign.manifest);
    }
    match parent.open_dir(name.as_str()) {
        Ok(dir) => match foreign::open_directory(dir.as_ref(), Parts::Model)? {
            Some(manifest) => found(name, &dir, manifest),
            None => Ok(None),
        },
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The directory in which the files of a checkpoint that is no directory of ours lie: those that
/// `manifest` speaks of, which another rank may have found.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if files of another tool are not what they were when they were found.
pub(crate) fn place_of(
    storage: &dyn Storage,
    directory: &Path,
    entry: &str,
    manifest: &Manifest,
) -> Result<Arc<dyn Directory>> {
    let parent = storage.open_dir(directory)?;
    if *manifest.form() == Form::Plain {
        let rules = NameRules { is_lenient: true, ..NameRules::default() };
        if let Some(foreign) = foreign::open_pytorch(&parent, entry, rules)? {
            if foreign.manifest != *manifest {
                let message = "it is not what it was when it was found";
                return Err(Error::new(ErrorKind::Corrupt, message)
                    .with_path(parent.path().join(entry))
                    .with_help("nothing was changed; load it again once nobody writes it"));
            }
            return Ok(foreign.dir);
        }
    }
    match parent.open_dir(entry) {
        // A directory of another tool.
        Ok(dir) => Ok(dir),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(parent),
        Err(e) => Err(e),
    }
}

/// What is under the name now.
pub(crate) fn reread(storage: &dyn Storage, directory: &Path, entry: &str) -> Result<Manifest> {
    let parent = storage.open_dir(directory)?;
    let name = CheckpointName::new(entry)?;
    let manifest = open_with_siblings(parent.as_ref(), &name, false)?;
    manifest.ok_or_else(|| Error::new(ErrorKind::NotFound, "no file here"))
}

fn open_with_siblings(
    parent: &dyn Directory,
    name: &CheckpointName,
    unverified: bool,
) -> Result<Option<Manifest>> {
    let opened = open(parent, name.as_str(), unverified);
    let Some(manifest) = opened.map_err(|e| at(e, parent, name.as_str()))? else { return Ok(None) };
    let Form::Single { siblings } = manifest.form().clone() else { return Ok(Some(manifest)) };
    if siblings.is_empty() {
        return Ok(Some(manifest));
    }
    let Some(stem) = layout::stem_of(name) else {
        let message = "it names files of other components, which cannot be found under this name";
        return Err(Error::new(ErrorKind::Corrupt, message)
            .with_path(parent.path().join(name.as_str()))
            .with_help("give it back the name that ends in `_model.safetensors`"));
    };
    let opened = siblings.iter().map(|component| sibling(parent, &manifest, &stem, component));
    let opened = opened.collect::<Result<Vec<_>>>()?;
    manifest.join(opened).map(Some)
}

fn sibling(
    parent: &dyn Directory,
    model: &Manifest,
    stem: &CheckpointName,
    component: &Component,
) -> Result<Manifest> {
    let name = layout::component_file(stem, component)?;
    let refuse = |kind, message: String| {
        Err(Error::new(kind, message)
            .with_path(parent.path().join(name.as_str()))
            .with_help("nothing was changed; put the files of one save together again"))
    };
    let opened = open(parent, name.as_str(), false).map_err(|e| at(e, parent, name.as_str()))?;
    match opened {
        Some(manifest) if manifest.save_id() == model.save_id() => Ok(manifest),
        Some(manifest) => refuse(
            ErrorKind::Mismatch,
            format!(
                "the file of component {component} is of save {}, the model of {}",
                manifest.save_id(),
                model.save_id()
            ),
        ),
        None => refuse(ErrorKind::Corrupt, format!("the file of component {component} is gone")),
    }
}

fn at(error: Error, parent: &dyn Directory, name: &str) -> Error {
    if error.path().is_some() { error } else { error.with_path(parent.path().join(name)) }
}

/// The manifest in (or, of another tool's file, for) one file; `None` if there is no such file.
fn open(parent: &dyn Directory, name: &str, unverified: bool) -> Result<Option<Manifest>> {
    let file = match parent.open_file(name) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        // A directory, or something that is no file at all.
        Err(e) if e.kind() == ErrorKind::Corrupt => return Ok(None),
        opened => opened?,
    };
    let single = match read_single(file.as_ref()) {
        // Neither by name nor by content is it meant to be a file of tensors.
        Err(e)
            if e.kind() != ErrorKind::Storage
                && !name.ends_with(layout::SAFETENSORS)
                && !bears_our_mark(file.as_ref())? =>
        {
            return Ok(None);
        }
        read => read?,
    };
    let Some((hash, bytes)) = &single.embedded else {
        if unverified {
            return foreign::of_file(PlainFile::new(name, single, file.len())).map(Some);
        }
        return Err(Error::new(
            ErrorKind::Incompatible,
            "a file without a manifest, of another tool",
        )
        .with_help("only its weights can be loaded: use `initialize_from_checkpoint`"));
    };
    let manifest = Manifest::parse(bytes)?;
    check_file(&manifest, &single, *hash, file.len())?;
    Ok(Some(manifest.found_as(name)))
}

/// One file of another tool; `None` if there is no such file.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a checkpoint; as [`find`].
pub(crate) fn open_plain(
    parent: &dyn Directory,
    name: &CheckpointName,
) -> Result<Option<Manifest>> {
    match open(parent, name.as_str(), true)? {
        Some(manifest) if *manifest.form() != Form::Plain => {
            Err(is_ours(&parent.path().join(name.as_str())))
        }
        opened => Ok(opened),
    }
}

/// The error of what is to become a checkpoint, and is one.
pub(crate) fn is_ours(path: &Path) -> Error {
    Error::new(ErrorKind::InvalidInput, "this is a checkpoint already")
        .with_path(path)
        .with_help("load it, or copy it, as it is")
}

/// Whether the manifest is that of this file.
fn check_file(manifest: &Manifest, single: &SingleFile, hash: [u8; 16], len: u64) -> Result<()> {
    let corrupt = |message: &str| Err(Error::new(ErrorKind::Corrupt, message));
    let (Form::Single { .. }, [file]) = (manifest.form(), manifest.data_files()) else {
        return corrupt("the manifest in the header is not that of a file");
    };
    if file.header_hash != hash || file.data_start != single.header.data_start {
        return corrupt("its header is not what was saved");
    }
    if file.len != len {
        return corrupt("its length is not what was saved");
    }
    let mut named: Vec<&HeaderTensor> = single.header.tensors.iter().collect();
    named.sort_by(|a, b| a.name.cmp(&b.name));
    let stated = manifest.tensors().iter().map(|tensor| {
        let begin = tensor.pieces.first().map_or(0, |piece| piece.begin);
        (&tensor.name, &tensor.spec, begin.checked_sub(file.data_start))
    });
    if !stated.eq(named.into_iter().map(|t| (&t.name, &t.spec, Some(t.begin)))) {
        return corrupt("its header and its manifest name different tensors");
    }
    Ok(())
}

/// Whether a file that cannot be parsed began as one of ours. Either mark will do: one flipped bit
/// does not make a file that was ours somebody else's.
pub(crate) fn bears_our_mark(file: &dyn ReadFile) -> Result<bool> {
    const MARKS: [&[u8]; 2] =
        [b"\"tch_checkpoint.form\":\"single\"", b"\"tch_checkpoint.manifest\":\""];
    let mut start = vec![0; usize::try_from(file.len()).unwrap_or(usize::MAX).min(1 << 10)];
    file.read_at(0, &mut start)?;
    let bears = |mark: &[u8]| start.windows(mark.len()).any(|window| window == mark);
    Ok(MARKS.into_iter().any(bears))
}
