//! The bytes of tensors in the order in which they are written, a few MiB at a time.

use std::collections::VecDeque;

use crate::cast::cast;
use crate::catalog::Found;
use crate::error::{Error, ErrorKind, Result};
use crate::export::ExportedTensor;
use crate::export::plan::PlannedTensor;
use crate::load::{PART_BYTES, PartReader};
use crate::manifest::TensorRecord;
use crate::pytorch::ZipWriter;
use crate::slice::{Parts, Slice};
use crate::sweep::Pace;

/// Reads planned tensors, verified; small ones together.
pub(super) struct Feed<'f> {
    found: &'f Found,
    reader: PartReader<'f>,
    /// What is still to be read.
    parts: Box<dyn Iterator<Item = (&'f TensorRecord, Slice)> + 'f>,
    next: Option<(&'f TensorRecord, Slice)>,
    ready: VecDeque<Vec<u8>>,
    pace: &'f Pace,
}

impl<'f> Feed<'f> {
    pub(super) fn open(
        found: &'f Found,
        tensors: &'f [PlannedTensor],
        pace: &'f Pace,
    ) -> Result<Self> {
        let parts = tensors.iter().filter(|tensor| tensor.from.size_bytes() > 0);
        let parts = parts.filter_map(|tensor| {
            Some((found.manifest.tensor(tensor.stored.as_str())?, &tensor.from))
        });
        let mut parts: Box<dyn Iterator<Item = _>> = Box::new(parts.flat_map(|(record, from)| {
            Parts::of(from).of_at_most(PART_BYTES).map(move |part| (record, part))
        }));
        let next = parts.next();
        let reader = PartReader::open(found)?;
        Ok(Self { found, reader, parts, next, ready: VecDeque::new(), pace })
    }

    /// Writes the next tensor as a member of an archive.
    pub(super) fn tensor(
        &mut self,
        tensor: &PlannedTensor,
        zip: &mut ZipWriter<'_>,
        name: &str,
    ) -> Result<ExportedTensor> {
        let mut member = zip.begin(name, tensor.spec.size_bytes())?;
        let (mut have, mut overflowed, mut scratch) = (0, 0, Vec::new());
        while have < tensor.from.size_bytes() {
            let read = self.part().map_err(|e| match e.tensor() {
                Some(_) => e,
                None => e.with_tensor(tensor.name.as_str()),
            })?;
            have += read.len() as u64;
            let bytes = if tensor.from.dtype() == tensor.spec.dtype() {
                &read
            } else {
                scratch.clear();
                let lost = cast(tensor.from.dtype(), tensor.spec.dtype(), &read, &mut scratch);
                overflowed += lost.map_err(|e| e.with_tensor(tensor.name.as_str()))?;
                &scratch
            };
            member.put(bytes)?;
            self.pace.progress.add(bytes.len() as u64);
        }
        member.finish()?;
        Ok(ExportedTensor { overflowed, ..tensor.exported() })
    }

    fn part(&mut self) -> Result<Vec<u8>> {
        if self.ready.is_empty() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while let Some((record, part)) = self.next.take() {
                let own = part.elements() * record.spec.dtype().size_bytes();
                if !batch.is_empty() && bytes + own > PART_BYTES {
                    self.next = Some((record, part));
                    break;
                }
                bytes += own;
                batch.push((record, part));
                self.next = self.parts.next();
            }
            self.ready = self.reader.read(&batch)?.into();
            self.pace.progress.add(bytes);
        }
        self.ready.pop_front().ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "more bytes than there are")
                .with_path(self.found.path())
        })
    }
}
