//! Files of PyTorch: which bytes of them are tensors, and what those are called here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::files::extents::{Data, Extent, ExtentDirectory, GATHERED_BYTES_MAX, Stretch, Strided};
use crate::manifest::{FileParts, Manifest, PlainParts, PlainTensor, hash16};
use crate::pickle::{PICKLE_BYTES_MAX, Pickle};
use crate::pytorch::{
    Archive, Described, Found, Member, NameRules, Named, Source, described, is_known, named,
};
use crate::slice::Slice;
use crate::storage::{Directory, ReadFile};
use crate::tensor::{Component, TensorName, TensorSpec};

/// How much of a file is read at once while its members are looked for.
const AHEAD: u64 = 4 << 10;

/// Whether a file begins as one of `torch.save` does.
///
/// # Errors
/// [`ErrorKind::Incompatible`] if it begins as those of old versions did, which wrote no archives,
/// or as any other pickle.
pub(crate) fn is_archive(file: &dyn ReadFile) -> Result<bool> {
    /// Where an archive of `tar` says that it is one.
    const TAR: usize = 257;
    const OLD: [u8; 13] = *b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    let mut begin = [0; TAR + 5];
    let len = usize::try_from(file.len()).unwrap_or(usize::MAX).min(begin.len());
    let begin = begin.get_mut(..len).unwrap_or_default();
    file.read_at(0, begin)?;
    // A safetensors file begins with the length of its header, whatever that is, and a brace.
    if begin.get(8) == Some(&b'{') {
        return Ok(false);
    }
    let is_pickle = matches!(begin, [0x80, 2..=5, ..]);
    let what = if is_pickle && begin.get(2..15) == Some(&OLD[..]) {
        "`torch.save` of PyTorch before 1.6"
    } else if begin.get(TAR..) == Some(b"ustar") {
        "an archive of `tar`, as `torch.save` wrote before PyTorch 0.2"
    } else if is_pickle {
        "a pickle without an archive around it"
    } else {
        return Ok(begin.starts_with(b"PK\x03\x04"));
    };
    Err(Error::new(ErrorKind::Incompatible, what).with_help(
        "load it and save it again with `torch.save` of PyTorch 1.6 or newer, as a state dict",
    ))
}

/// What `torch.save` wrote: the directory in which its tensors are found, and what there is.
///
/// # Errors
/// [`ErrorKind::Corrupt`]; [`ErrorKind::Incompatible`] for what is no state dict of tensors and
/// plain values; [`ErrorKind::Unsupported`] for tensors that are not in one piece of memory.
pub(crate) fn open_archive(
    dir: &Arc<dyn Directory>,
    name: &str,
    rules: NameRules,
) -> Result<(Arc<ExtentDirectory>, Manifest)> {
    let file = dir.open_file(name)?;
    read_archive(dir, name, &*file, rules).map_err(|e| match e.path() {
        Some(_) => e,
        None => e.with_path(dir.path().join(name)),
    })
}

fn read_archive(
    dir: &Arc<dyn Directory>,
    name: &str,
    file: &dyn ReadFile,
    rules: NameRules,
) -> Result<(Arc<ExtentDirectory>, Manifest)> {
    let mut source = Source::new(file);
    let archive = Archive::open(&mut source, 0, file.len())?;
    let bytes = archive.read(&mut source, "data.pkl", PICKLE_BYTES_MAX)?;
    let (pickle, _) = Pickle::read(bytes, &is_known)?;
    let tree = described(&pickle)?;
    drop(pickle);
    let named = named(tree, &spec_of, rules)?;
    source.read_ahead(AHEAD);
    let mut members: HashMap<String, Member> = HashMap::new();
    let mut find = |described: &Described| -> Result<Member> {
        if let Some(member) = members.get(&described.key) {
            return Ok(*member);
        }
        let member = archive.member(&mut source, &format!("data/{}", described.key))?;
        members.insert(described.key.clone(), member);
        Ok(member)
    };
    let mut layout = Layout::default();
    for (tensor, (component, found)) in &named.tensors {
        let stretch = match found {
            Found::Stored(described) => find(described).and_then(|m| stretch(described, &m)),
            Found::Made(_, bytes) => Ok(made(bytes)),
        };
        let stretch = stretch.map_err(|e| e.with_tensor(tensor.as_str()))?;
        let spec = spec_of_found(found).map_err(|e| e.with_tensor(tensor.as_str()))?;
        layout.add(tensor, component, spec, name, stretch);
    }
    layout.finish(dir, &named, |_| Ok(file.len()))
}

fn spec_of(described: &Described) -> Result<TensorSpec> {
    TensorSpec::new(described.dtype, described.shape.clone())
        .map_err(|e| e.with_kind(ErrorKind::Corrupt))
}

fn spec_of_found(found: &Found<Described>) -> Result<TensorSpec> {
    match found {
        Found::Stored(described) => spec_of(described),
        Found::Made(spec, _) => Ok(spec.clone()),
    }
}

pub(super) fn made(bytes: &[u8]) -> Stretch {
    Stretch { bytes: bytes.len() as u64, data: Data::Made(bytes.to_vec()) }
}

/// Where the elements of a tensor lie in its storage, which is a member of an archive.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if it leaves its storage, or the storage is not as long as it should be;
/// [`ErrorKind::Unsupported`] if it has more elements than its storage, and for more than fits
/// into memory where elements have to be put in order.
pub(super) fn stretch(described: &Described, member: &Member) -> Result<Stretch> {
    let Described { dtype, shape, strides, first, storage_bytes, .. } = described;
    let size = dtype.size_bytes();
    let spec = spec_of(described)?;
    if *storage_bytes != member.bytes {
        let message = format!("its storage has {} bytes, {storage_bytes} are stated", member.bytes);
        return Err(Error::new(ErrorKind::Corrupt, message).with_offset(member.begin));
    }
    let bytes = spec.size_bytes();
    if bytes == 0 {
        return Ok(Stretch { bytes, data: Data::Rows(*member, 0) });
    }
    let held = member.bytes / size;
    if spec.elements() > held {
        let message = format!("{spec} in a storage of {held} elements: it is expanded");
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_help("save it as a tensor of its own: `.contiguous()`"));
    }
    let last = shape.iter().zip(strides).try_fold(*first, |place, (length, stride)| {
        place.checked_add(length.checked_sub(1)?.checked_mul(*stride)?)
    });
    if last.is_none_or(|last| last >= held) {
        let message = format!("{spec} leaves its storage of {held} elements");
        return Err(Error::new(ErrorKind::Corrupt, message).with_offset(member.begin));
    }
    if is_contiguous(shape, strides) {
        return Ok(Stretch { bytes, data: Data::Rows(*member, first * size) });
    }
    if member.bytes > GATHERED_BYTES_MAX {
        let message = format!(
            "it does not lie row by row, in a storage of {} bytes; at most {GATHERED_BYTES_MAX} \
             can be put in order",
            member.bytes
        );
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with_help("save it as a tensor of its own: `.contiguous()`"));
    }
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let (shape, strides) = (shape.clone(), strides.clone());
    let strided = Strided { size, first: *first, shape, strides };
    Ok(Stretch { bytes, data: Data::Strided(*member, strided) })
}

/// Whether elements follow each other row by row. What has one place has any stride.
fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1u64;
    shape.iter().zip(strides).rev().all(|(length, stride)| {
        let fits = *length == 1 || *stride == expected;
        expected = expected.saturating_mul(*length);
        fits
    })
}

/// Tensors as they are put together: which boxes of them are in which file.
#[derive(Default)]
pub(super) struct Layout {
    tensors: BTreeMap<TensorName, PlainTensor>,
    /// The stretches of each file, in the order of its boxes.
    files: BTreeMap<String, Vec<Placed>>,
}

/// A box of a tensor, and where it is.
struct Placed {
    tensor: TensorName,
    slice: Slice,
    stretch: Stretch,
}

impl Layout {
    /// A whole tensor in a file.
    fn add(
        &mut self,
        tensor: &TensorName,
        component: &Component,
        spec: TensorSpec,
        file: &str,
        stretch: Stretch,
    ) {
        let slice = Slice::full(spec.shape());
        self.begin(tensor, component, spec);
        self.add_box(tensor, slice, file, stretch);
    }

    /// A tensor whose boxes follow.
    pub(super) fn begin(&mut self, tensor: &TensorName, component: &Component, spec: TensorSpec) {
        let placed = PlainTensor { spec, component: component.clone(), boxes: Vec::new() };
        self.tensors.insert(tensor.clone(), placed);
    }

    pub(super) fn add_box(
        &mut self,
        tensor: &TensorName,
        slice: Slice,
        file: &str,
        stretch: Stretch,
    ) {
        let placed = Placed { tensor: tensor.clone(), slice, stretch };
        self.files.entry(file.to_owned()).or_default().push(placed);
    }

    /// The directory and the manifest. `len_of` says how long a file is.
    pub(super) fn finish<T>(
        mut self,
        dir: &Arc<dyn Directory>,
        named: &Named<T>,
        mut len_of: impl FnMut(&str) -> Result<u64>,
    ) -> Result<(Arc<ExtentDirectory>, Manifest)> {
        let (mut extents, mut files) = (Vec::new(), Vec::new());
        for (number, (name, mut placed)) in (0u32..).zip(std::mem::take(&mut self.files)) {
            // As it lies in the file, so that reading goes on without a break.
            placed.sort_by_key(|placed| placed.stretch.place());
            let stretches = placed.iter().map(|placed| placed.stretch.clone()).collect();
            let extent = Extent::new(&name, len_of(&name)?, stretches)?;
            for (Placed { tensor, slice, .. }, start) in placed.into_iter().zip(extent.starts()) {
                if let Some(tensor) = self.tensors.get_mut(&tensor) {
                    tensor.boxes.push((slice, number, *start));
                }
            }
            let header_hash = hash16(&[]);
            let parts =
                FileParts { len: extent.len(), data_start: 0, header_hash, sums_hash: [0; 16] };
            files.push((name, Component::model(), parts));
            extents.push(extent);
        }
        if files.is_empty() {
            return Err(Error::new(ErrorKind::Incompatible, "it holds no tensor"));
        }
        let manifest = Manifest::of_plain(PlainParts {
            files,
            tensors: self.tensors,
            aliases: named.aliases.clone(),
            values: named.values.clone(),
            step: named.step.unwrap_or(0),
            epoch: named.epoch.unwrap_or(0),
        })?;
        Ok((Arc::new(ExtentDirectory::new(dir.clone(), extents)), manifest))
    }
}
