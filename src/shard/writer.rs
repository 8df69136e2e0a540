//! Writing the share of one rank: its data files and their block sums.

use super::at_file;
use super::header::Header;
use super::image::Image;
use super::pipeline::{self, Pipe, Progress, Stop};
use super::sums::SumsContent;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::SaveId;
use crate::manifest::hash16;
use crate::memory::buffers::Buffer;
use crate::plan::{
    FileReceipt, PlannedFile, PlannedPiece, Receipt, SavePlan, SumsReceipt, WriteTimes,
};
use crate::rank::Rank;
use crate::sabotage::{self, Defect};
use crate::state::{StateDict, TensorEntry};
use crate::storage::Directory;

/// Writes the files that `plan` gives to this rank into `dir`, makes them durable, and returns
/// the proof of what was written. Needs at most 32 MiB of buffers, plus headers and sums.
///
/// `progress` is called with the bytes of each finished write, from another thread. The plan is
/// checked against `state` before the first file is created. After an error the files are
/// incomplete, and no file whose write or fsync failed is touched again.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if the plan does not fit `state`,
/// [`AlreadyExists`](ErrorKind::AlreadyExists) for a file that is there already, the error of a
/// source (with its tensor), or that of the storage (with its path).
pub fn write_shards(
    dir: &dyn Directory,
    plan: &SavePlan,
    rank: Rank,
    step: u64,
    state: &StateDict,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Receipt> {
    let Some(sums_name) = &plan.sums_file else {
        if plan.files.is_empty() {
            return Ok(Receipt::default());
        }
        return Err(no_sums_file());
    };
    let prepared = plan.files.iter().map(|file| {
        let header = Header::of(file, &plan.save_id, rank, step)?;
        PreparedFile::new(file, header, state)
    });
    let prepared = prepared.collect::<Result<Vec<_>>>()?;
    let pieces = prepared.iter().flat_map(|file| &file.cuts).map(|cut| cut.bytes);
    let mut sums = SumsContent::new(&plan.save_id, pieces)?;
    let files = pipeline::run(dir, progress, |pipe| {
        prepared.iter().map(|file| write_file(pipe, file, &mut sums)).collect()
    })?;
    finish_share(dir, files, sums_name, &sums, progress)
}

/// A data file whose bytes lie in memory already.
#[allow(dead_code, reason = "for saves beside training")]
pub(crate) struct StagedFile {
    pub(crate) image: Image,
    /// All of its bytes, in file order: every buffer but the last one is full.
    pub(crate) buffers: Vec<Buffer>,
}

/// The share of one rank, filled into buffers.
#[allow(dead_code, reason = "for saves beside training")]
pub(crate) struct StagedShare {
    pub(crate) save_id: SaveId,
    pub(crate) files: Vec<StagedFile>,
    /// As [`SavePlan::sums_file`].
    pub(crate) sums_name: Option<String>,
}

/// As [`write_shards`], of a share that is filled already: hashed on this thread, written by
/// another one. Each buffer is dropped once it is written.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if a file has not as many bytes as its image, else as
/// [`write_shards`].
#[allow(dead_code, reason = "for saves beside training")]
pub(crate) fn write_staged(
    dir: &dyn Directory,
    share: StagedShare,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Receipt> {
    let StagedShare { save_id, files, sums_name } = share;
    let Some(sums_name) = sums_name else {
        return if files.is_empty() { Ok(Receipt::default()) } else { Err(no_sums_file()) };
    };
    for file in &files {
        let filled: u64 = file.buffers.iter().map(|buffer| buffer.bytes().len() as u64).sum();
        if filled != file.image.len() {
            let message = format!("{filled} of {} bytes were staged", file.image.len());
            return Err(at_file(refusal(message), dir, file.image.name()));
        }
    }
    let pieces = files.iter().flat_map(|file| file.image.header().piece_bytes()).copied();
    let mut sums = SumsContent::new(&save_id, pieces)?;
    let files = pipeline::run(dir, progress, |pipe| {
        files.into_iter().map(|file| write_staged_file(pipe, file, &mut sums)).collect()
    })?;
    finish_share(dir, files, &sums_name, &sums, progress)
}

/// Once the data files are durable: their sums, and the directory.
fn finish_share(
    dir: &dyn Directory,
    files: Vec<FileReceipt>,
    sums_name: &str,
    sums: &SumsContent,
    progress: Progress<'_>,
) -> Result<Receipt> {
    let sums_file = write_sums(dir, sums_name, sums.bytes(), progress)?;
    sabotage::unless(Defect::DirectoriesNotSynced, || dir.sync())
        .map_err(|e| if e.path().is_some() { e } else { e.with_path(dir.path()) })?;
    Ok(Receipt { files, sums_file: Some(sums_file), times: WriteTimes::default() })
}

fn no_sums_file() -> Error {
    refusal("the plan has data files, but no file for their sums")
}

fn refusal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

/// A planned file, with its header and the sources of its pieces.
struct PreparedFile<'a> {
    image: Image,
    cuts: Vec<Cut<'a>>,
}

impl<'a> PreparedFile<'a> {
    fn new(file: &'a PlannedFile, header: Header, state: &'a StateDict) -> Result<Self> {
        let cuts = file
            .pieces
            .iter()
            .map(|piece| Cut::new(piece, state).map_err(|e| e.with_tensor(piece.name.as_str())));
        let cuts = cuts.collect::<Result<_>>()?;
        Ok(Self { image: Image::new(file.name.clone(), header), cuts })
    }
}

/// The byte range that a piece takes out of a held box.
pub(crate) struct Cut<'a> {
    pub(crate) tensor: &'a str,
    pub(crate) entry: &'a TensorEntry,
    pub(crate) held_bytes: u64,
    pub(crate) begin: u64,
    pub(crate) bytes: u64,
}

impl<'a> Cut<'a> {
    /// The piece lies inside its tensor (the header was made).
    pub(crate) fn new(piece: &'a PlannedPiece, state: &'a StateDict) -> Result<Self> {
        let boxes = state.boxes(piece.name.as_str());
        let Some(entry) = boxes.iter().find(|b| b.slice == piece.held && b.spec == piece.spec)
        else {
            let message = format!("the state holds no box {} of {}", piece.held, piece.spec);
            return Err(refusal(message));
        };
        let element = piece.spec.dtype().size_bytes();
        let elements = piece.slice.elements();
        let inside = piece.held.intersect(&piece.slice).as_ref() == Some(&piece.slice);
        let mut runs = (elements > 0 && inside).then(|| piece.held.runs_of(&piece.slice));
        let first = runs.as_mut().and_then(Iterator::next);
        let begin = match first {
            Some(run) if run.elements == elements => run.from,
            None if elements == 0 => 0,
            _ => {
                let message =
                    format!("piece {} is no contiguous part of {}", piece.slice, piece.held);
                return Err(refusal(message));
            }
        };
        Ok(Self {
            tensor: piece.name.as_str(),
            entry,
            held_bytes: piece.held.elements() * element,
            begin: begin * element,
            bytes: elements * element,
        })
    }

    /// The piece, if its box lies in host memory.
    pub(crate) fn host_bytes(&self) -> Result<Option<&'a [u8]>> {
        let Some(held) = self.entry.source.bytes() else { return Ok(None) };
        if held.len() as u64 != self.held_bytes {
            let message =
                format!("the source has {} bytes, its box {}", held.len(), self.held_bytes);
            return Err(refusal(message).with_tensor(self.tensor));
        }
        let begin = usize::try_from(self.begin).ok();
        let end = usize::try_from(self.begin + self.bytes).ok();
        Ok(begin.zip(end).and_then(|(begin, end)| held.get(begin..end)))
    }
}

fn write_file(
    pipe: &mut Pipe,
    file: &PreparedFile<'_>,
    sums: &mut SumsContent,
) -> Result<FileReceipt, Stop> {
    let (image, sums_begin) = (&file.image, sums.len());
    pipe.begin(image.name(), image.len())?;
    let mut at = 0;
    while at < image.len() {
        let room = pipe.room(image.len() - at)?;
        image.fill(&file.cuts, at, room)?;
        // From the copy, not the source: what is hashed is what is written.
        image.sum(at, room, sums);
        at += room.len() as u64;
    }
    pipe.finish()?;
    Ok(receipt_of(image, sums_begin, sums))
}

#[allow(dead_code, reason = "for saves beside training")]
fn write_staged_file(
    pipe: &mut Pipe,
    file: StagedFile,
    sums: &mut SumsContent,
) -> Result<FileReceipt, Stop> {
    let (StagedFile { image, buffers }, sums_begin) = (file, sums.len());
    pipe.begin(image.name(), image.len())?;
    let mut at = 0;
    for buffer in buffers {
        let len = buffer.bytes().len() as u64;
        image.sum(at, buffer.bytes(), sums);
        pipe.give(buffer)?;
        at += len;
    }
    pipe.finish()?;
    Ok(receipt_of(&image, sums_begin, sums))
}

fn receipt_of(image: &Image, sums_begin: u64, sums: &SumsContent) -> FileReceipt {
    let header = image.header();
    let own_sums = usize::try_from(sums_begin).ok().and_then(|begin| sums.bytes().get(begin..));
    FileReceipt {
        name: image.name().to_owned(),
        len: image.len(),
        data_start: header.data_start(),
        header_hash: header.hash(),
        piece_bytes: header.piece_bytes().to_vec(),
        sums_begin,
        sums_hash: hash16(own_sums.unwrap_or_default()),
    }
}

fn write_sums(
    dir: &dyn Directory,
    name: &str,
    content: &[u8],
    progress: Progress<'_>,
) -> Result<SumsReceipt> {
    pipeline::write_whole(dir, name, content).map_err(|e| at_file(e, dir, name))?;
    progress(content.len() as u64);
    let len = content.len() as u64;
    Ok(SumsReceipt { name: name.to_owned(), len, hash: hash16(content) })
}
