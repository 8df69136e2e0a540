//! Writing the share of one rank: its data files and their block sums.

use super::at_file;
use super::header::Header;
use super::image::Image;
use super::pipeline::{self, Pipe, Progress, Stop};
use super::sums::SumsContent;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::hash16;
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
        return Err(refusal("the plan has data files, but no file for their sums"));
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
    let sums_file = write_sums(dir, sums_name, sums.bytes(), progress)?;
    sabotage::unless(Defect::DirectoriesNotSynced, || dir.sync())
        .map_err(|e| if e.path().is_some() { e } else { e.with_path(dir.path()) })?;
    Ok(Receipt { files, sums_file: Some(sums_file), times: WriteTimes::default() })
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
    let (image, header, sums_begin) = (&file.image, file.image.header(), sums.len());
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
    let own_sums = usize::try_from(sums_begin).ok().and_then(|begin| sums.bytes().get(begin..));
    Ok(FileReceipt {
        name: image.name().to_owned(),
        len: image.len(),
        data_start: header.data_start(),
        header_hash: header.hash(),
        piece_bytes: header.piece_bytes().to_vec(),
        sums_begin,
        sums_hash: hash16(own_sums.unwrap_or_default()),
    })
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
