//! From receipts to a manifest: only what was written, and all that was planned.

use super::{
    Body, DataFile, Format, Manifest, OtherFile, Piece, SUM_BYTES, SUMS_HEADER_BYTES, TensorRecord,
    sums_of,
};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::names::Names;
use crate::plan::save::MergedPlan;
use crate::plan::{
    FileReceipt, LinkedComponent, PlannedFile, PlannedPiece, Receipt, SavePlan, SumsReceipt,
};
use crate::rank::Rank;

/// What a manifest says about its making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SealInfo {
    /// Milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Version of this library.
    pub library_version: String,
    /// Version of libtorch; may be empty.
    pub libtorch_version: String,
}

impl Manifest {
    /// Makes the manifest of what was written: `receipts` holds one receipt per rank, in rank
    /// order, `other_files` what the coordinator wrote besides.
    ///
    /// # Errors
    /// [`ErrorKind::Disagreement`], naming the rank, if anything was written that was not
    /// planned, or planned that was not written. [`ErrorKind::InvalidInput`] if what results is
    /// no valid manifest, such as one with a bad name among `other_files`.
    pub fn seal(
        merged: &MergedPlan,
        receipts: Vec<Receipt>,
        other_files: Vec<OtherFile>,
        info: SealInfo,
    ) -> Result<Self> {
        if receipts.len() != merged.plans.len() {
            let message = format!("{} receipts of {} ranks", receipts.len(), merged.plans.len());
            return Err(Error::new(ErrorKind::Disagreement, message));
        }
        let mut written = Written::default();
        let ranks = (0..).map(Rank::new).zip(merged.plans.iter().zip(receipts));
        for (rank, (plan, receipt)) in ranks {
            written.add_rank(merged, plan, receipt).map_err(|e| e.at_rank(rank))?;
        }
        let mut aliases = merged.aliases.clone();
        for linked in &merged.linked {
            written.add_linked(linked)?;
            aliases.extend(linked.aliases.iter().cloned());
        }
        aliases.sort();
        let world_size = u32::try_from(merged.plans.len()).unwrap_or(u32::MAX);
        let body = Body {
            save_id: merged.save_id,
            step: merged.target.step,
            epoch: merged.target.epoch,
            world_size,
            created_unix_ms: info.created_unix_ms,
            library_version: info.library_version,
            libtorch_version: info.libtorch_version,
            data_files: std::mem::take(&mut written.data_files),
            sums_files: std::mem::take(&mut written.sums_files),
            other_files,
            tensors: written.tensors(),
            aliases,
            values: merged.values.clone(),
            rank_values: merged.rank_values.clone(),
        };
        Self::from_body(Format::NEWEST, body).map_err(|e| e.with_kind(ErrorKind::InvalidInput))
    }
}

fn refuse(message: impl Into<String>, file: &str) -> Error {
    Error::new(ErrorKind::Disagreement, message)
        .with_path(file)
        .with_help("nothing was committed; the previous checkpoint is as it was")
}

/// What the receipts prove, rank by rank.
#[derive(Default)]
struct Written<'a> {
    data_files: Vec<DataFile>,
    sums_files: Vec<OtherFile>,
    names: Names<'a>,
    /// By number of the name.
    tensors: Vec<TensorRecord>,
}

impl<'a> Written<'a> {
    fn add_rank(
        &mut self,
        merged: &MergedPlan,
        plan: &'a SavePlan,
        receipt: Receipt,
    ) -> Result<()> {
        check_names(plan, &receipt)?;
        for (planned, reported) in plan.files.iter().zip(&receipt.files) {
            check_file(planned, reported)?;
        }
        check_sums(plan, &receipt)?;
        let sums_file = index(self.sums_files.len())?;
        if let Some(SumsReceipt { name, len, hash }) = receipt.sums_file {
            self.sums_files.push(OtherFile { name, len, hash });
        }
        for (planned, reported) in plan.files.iter().zip(receipt.files) {
            self.add_file(merged, planned, reported, sums_file)?;
        }
        Ok(())
    }

    fn add_file(
        &mut self,
        merged: &MergedPlan,
        planned: &'a PlannedFile,
        reported: FileReceipt,
        sums_file: u32,
    ) -> Result<()> {
        let file = index(self.data_files.len())?;
        let mut begin = reported.data_start;
        self.names.begin_list();
        for (piece, bytes) in planned.pieces.iter().zip(&reported.piece_bytes) {
            let number = self.names.number(&piece.name) as usize;
            let found = Piece { file, begin, slice: piece.slice.clone(), first_sum: 0 };
            match self.tensors.get_mut(number) {
                Some(record) => record.pieces.push(found),
                None => self.tensors.push(TensorRecord {
                    name: piece.name.clone(),
                    component: planned.component.clone(),
                    spec: piece.spec.clone(),
                    pieces: vec![found],
                }),
            }
            begin = begin.saturating_add(*bytes);
        }
        self.data_files.push(DataFile {
            name: reported.name,
            component: planned.component.clone(),
            save_id: merged.save_id,
            len: reported.len,
            data_start: reported.data_start,
            header_hash: reported.header_hash,
            sums_file,
            sums_begin: reported.sums_begin,
            sums_count: 0,
            sums_hash: reported.sums_hash,
        });
        Ok(())
    }

    /// What is there already; two components may have their sums in one file.
    fn add_linked(&mut self, linked: &LinkedComponent) -> Result<()> {
        let mut sums_files = Vec::with_capacity(linked.sums_files.len());
        for file in &linked.sums_files {
            let known = self.sums_files.iter().position(|known| known.name == file.name);
            sums_files.push(index(known.unwrap_or(self.sums_files.len()))?);
            if known.is_none() {
                self.sums_files.push(file.clone());
            }
        }
        let outside = || refuse("a linked file has no sums file", linked.component.as_str());
        let first = index(self.data_files.len())?;
        for file in &linked.data_files {
            let sums_file = *sums_files.get(file.sums_file as usize).ok_or_else(outside)?;
            self.data_files.push(DataFile { sums_file, ..file.clone() });
        }
        for tensor in &linked.tensors {
            let mut tensor = tensor.clone();
            tensor.pieces.iter_mut().for_each(|p| p.file = p.file.saturating_add(first));
            self.tensors.push(tensor);
        }
        Ok(())
    }

    /// By name, with pieces by place.
    fn tensors(mut self) -> Vec<TensorRecord> {
        for tensor in &mut self.tensors {
            if !tensor.pieces.is_sorted_by(|a, b| a.slice <= b.slice) {
                tensor.pieces.sort_by(|a, b| a.slice.cmp(&b.slice));
            }
        }
        self.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        self.tensors
    }
}

/// Checks that exactly the planned files were written, in that order.
fn check_names(plan: &SavePlan, receipt: &Receipt) -> Result<()> {
    let planned = plan.files.iter().map(|f| Some(f.name.as_str()));
    let reported = receipt.files.iter().map(|f| Some(f.name.as_str()));
    // Padded, so that the first file that only one side has is found too.
    let longest = plan.files.len().max(receipt.files.len());
    let pad = std::iter::repeat(None);
    let pairs = planned.chain(pad.clone()).zip(reported.chain(pad)).take(longest);
    for (planned, reported) in pairs {
        if planned != reported {
            let message = format!(
                "planned `{}`, written `{}`",
                planned.unwrap_or("nothing"),
                reported.unwrap_or("nothing")
            );
            return Err(refuse(message, planned.or(reported).unwrap_or_default()));
        }
    }
    Ok(())
}

/// Checks that exactly the planned pieces were written, and nothing after them.
fn check_file(planned: &PlannedFile, reported: &FileReceipt) -> Result<()> {
    let sizes = planned.pieces.iter().map(PlannedPiece::size_bytes);
    if !sizes.eq(reported.piece_bytes.iter().copied()) {
        return Err(refuse("the pieces written are not those planned", &reported.name));
    }
    let end = reported.piece_bytes.iter().fold(reported.data_start, |e, b| e.saturating_add(*b));
    if end != reported.len {
        let message = format!("{} bytes long, planned were {end}", reported.len);
        return Err(refuse(message, &reported.name));
    }
    Ok(())
}

/// Checks that the block sums of the files lie one after the other and fill the sums file.
fn check_sums(plan: &SavePlan, receipt: &Receipt) -> Result<()> {
    let reported = receipt.sums_file.as_ref().map(|f| f.name.as_str());
    if plan.sums_file.as_deref() != reported {
        let planned = plan.sums_file.as_deref().unwrap_or("no sums file");
        let message = format!("planned {planned}, written {}", reported.unwrap_or("no sums file"));
        return Err(refuse(message, reported.unwrap_or(planned)));
    }
    let Some(sums) = &receipt.sums_file else { return Ok(()) };
    let mut end = SUMS_HEADER_BYTES;
    for file in &receipt.files {
        if file.sums_begin != end {
            let message = format!("its block sums begin at {}, not at {end}", file.sums_begin);
            return Err(refuse(message, &file.name));
        }
        let count = file.piece_bytes.iter().fold(0u64, |n, b| n.saturating_add(sums_of(*b)));
        end = end.saturating_add(count.saturating_mul(SUM_BYTES));
    }
    if end != sums.len {
        let message = format!("{} bytes long, its sums are {end}", sums.len);
        return Err(refuse(message, &sums.name));
    }
    Ok(())
}

fn index(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| Error::new(ErrorKind::InvalidInput, "too many files"))
}
