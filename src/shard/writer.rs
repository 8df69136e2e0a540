//! Writing the share of one rank: its data files and their block sums.

use std::time::Instant;

use super::at_file;
use super::crew::{self, Written};
use super::cut::{Boxes, Cut};
use super::header::Header;
use super::image::Image;
use super::pipeline::{self, Progress};
use super::sums::SumsContent;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{SUM_BYTES, SUMS_HEADER_BYTES, hash16, sums_of};
use crate::plan::{FileReceipt, PlannedFile, Receipt, SavePlan, SumsReceipt, WriteTimes};
use crate::rank::Rank;
use crate::sabotage::{self, Defect};
use crate::state::StateDict;
use crate::storage::Directory;

/// Writes the files that `plan` gives to this rank into `dir`, makes them durable, and returns
/// the proof of what was written. Needs at most 48 MiB of buffers, plus headers and sums.
///
/// `progress` is called with the bytes of each finished write, from another thread or this one. The plan is
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
    let begun = clock::now();
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
    let sums = SumsContent::new(&plan.save_id, pieces)?;
    let written = crew::write_files(dir, &prepared, sums, progress)?;
    let images: Vec<&Image> = prepared.iter().map(|file| &file.image).collect();
    finish_share(dir, &images, written, sums_name, progress, begun)
}

/// Once the data files are durable: their sums, and the directory.
pub(super) fn finish_share(
    dir: &dyn Directory,
    images: &[&Image],
    written: Written,
    sums_name: &str,
    progress: Progress<'_>,
    begun: Instant,
) -> Result<Receipt> {
    let Written { sums, fill, disk } = written;
    let finishing = clock::now();
    let sums_file = write_sums(dir, sums_name, sums.bytes(), progress)?;
    sabotage::unless(Defect::DirectoriesNotSynced, || dir.sync())
        .map_err(|e| if e.path().is_some() { e } else { e.with_path(dir.path()) })?;
    let ended = clock::now();
    let times = WriteTimes {
        stage: fill.stage,
        hash: fill.hash,
        write: disk.write,
        fsync: disk.fsync + ended.saturating_duration_since(finishing),
        total: ended.saturating_duration_since(begun),
        bytes: disk.bytes + sums_file.len,
    };
    tracing::debug!(?times, "share written");
    Ok(Receipt { files: receipts_of(images, &sums), sums_file: Some(sums_file), times })
}

fn receipts_of(images: &[&Image], sums: &SumsContent) -> Vec<FileReceipt> {
    let mut sums_begin = SUMS_HEADER_BYTES;
    let receipt = |image: &&Image| {
        let header = image.header();
        let blocks: u64 = header.piece_bytes().iter().map(|bytes| sums_of(*bytes)).sum();
        let (begin, end) = (sums_begin, sums_begin + blocks * SUM_BYTES);
        sums_begin = end;
        let range = usize::try_from(begin).ok().zip(usize::try_from(end).ok());
        let own_sums = range.and_then(|(begin, end)| sums.bytes().get(begin..end));
        FileReceipt {
            name: image.name().to_owned(),
            len: image.len(),
            data_start: header.data_start(),
            header_hash: image.header_hash(),
            piece_bytes: header.piece_bytes().to_vec(),
            sums_begin: begin,
            sums_hash: hash16(own_sums.unwrap_or_default()),
        }
    };
    images.iter().map(receipt).collect()
}

pub(super) fn no_sums_file() -> Error {
    refusal("the plan has data files, but no file for their sums")
}

pub(super) fn refusal(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, message)
}

/// A planned file, with its header and the sources of its pieces.
pub(super) struct PreparedFile<'a> {
    pub(super) image: Image,
    pub(super) cuts: Vec<Cut<'a>>,
}

impl<'a> PreparedFile<'a> {
    fn new(file: &'a PlannedFile, header: Header, state: &'a StateDict) -> Result<Self> {
        let mut boxes = Boxes::new(state);
        let cuts = file.pieces.iter().map(|piece| {
            let boxes = boxes.of(&piece.name);
            Cut::of_boxes(piece, boxes).map_err(|e| e.with_tensor(piece.name.as_str()))
        });
        let cuts = cuts.collect::<Result<_>>()?;
        Ok(Self { image: Image::new(file.name.clone(), header), cuts })
    }
}

fn write_sums(
    dir: &dyn Directory,
    name: &str,
    content: &[u8],
    progress: Progress<'_>,
) -> Result<SumsReceipt> {
    pipeline::write_whole(dir, name, content, progress).map_err(|e| at_file(e, dir, name))?;
    let len = content.len() as u64;
    Ok(SumsReceipt { name: name.to_owned(), len, hash: hash16(content) })
}
