//! `stress load`: reads a checkpoint of `stress save` and compares every byte with what must be
//! there. Nothing is kept: blocks are compared as they come.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;

use super::content::{Content, Share};
use super::ranks::Ranks;
use crate::catalog::{Wanted, Which};
use crate::cli::{Output, Stop, complain, directory};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::layout::SaveId;
use crate::load::{Atomicity, Destination, load};
use crate::manifest::Manifest;
use crate::memory::zeroed;
use crate::plan::load::LoadRules;
use crate::rank::{Rank, WorldSize};
use crate::state::{LoadTargets, TensorSink, Values};
use crate::storage::{LocalStorage, Storage};

/// Bytes that are compared at once.
const CHUNK_BYTES: u64 = 64 * 1024;

#[derive(Args)]
pub(in crate::cli) struct Load {
    /// Directory of checkpoints.
    #[arg(long)]
    dir: PathBuf,
    /// Which one: a step, or `latest`.
    #[arg(long, value_name = "N|latest", default_value = "latest")]
    step: Step,
    #[command(flatten)]
    ranks: Ranks,
    /// One JSON object instead of a line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Latest,
    Number(u64),
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "latest" => Ok(Self::Latest),
            _ => text.parse().map(Self::Number).map_err(|e| format!("a step or `latest`: {e}")),
        }
    }
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Load) -> Result<u8, Stop> {
    let which = match arguments.step {
        Step::Latest => Which::Latest,
        Step::Number(step) => Which::Step(step),
    };
    if which == Which::Latest {
        // What has no readable manifest is passed over, which whoever tries a storage must know.
        for fault in directory::damaged(&arguments.dir)? {
            complain(&format_args!("note: damaged: {fault}"));
        }
    }
    let wanted = Wanted::new(&arguments.dir, which);
    arguments.ranks.play(out, &|group, out| {
        let (step, save_id) = compare(group, &LocalStorage::new(), &wanted)?;
        super::say(out, arguments.json, "loaded", step, save_id)
    })
}

fn compare(group: &ProcessGroup, storage: &dyn Storage, wanted: &Wanted) -> Result<(u64, SaveId)> {
    let (rank, world, compared) = (group.rank(), group.world_size(), AtomicU64::new(0));
    let mut expected = Expected { rank, world, content: None, manifest: None, compared };
    let rules = LoadRules::default();
    let loaded = load(group, storage, wanted, &mut expected, &rules, Atomicity::InPlace)?;
    Ok((loaded.manifest.step(), loaded.save_id))
}

/// This rank's share of what must be there, by the manifest's own account.
struct Expected {
    rank: Rank,
    world: WorldSize,
    content: Option<Content>,
    manifest: Option<Manifest>,
    /// Bytes that were compared.
    compared: AtomicU64,
}

impl Destination for Expected {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        self.content = Some(Content::of(manifest)?);
        self.manifest = Some(manifest.clone());
        Ok(())
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let mut targets = LoadTargets::new();
        let (Some(content), Some(manifest)) = (self.content, &self.manifest) else {
            return Ok(targets);
        };
        let compared = &self.compared;
        for share in content.shares(self.rank, self.world)? {
            let (name, spec, slice) = (share.name.clone(), share.spec.clone(), share.slice()?);
            let sink = Comparing { content, share, manifest, compared };
            targets.add_slice(name, spec, slice, Box::new(sink))?;
        }
        Ok(targets)
    }

    /// A load that leaves something out must not pass.
    fn take_values(&mut self, _: &Manifest, _: Option<&Values>) -> Result<()> {
        let Some(content) = self.content else { return Ok(()) };
        let shares = content.shares(self.rank, self.world)?;
        let own: u64 = shares.iter().map(|share| share.range.end - share.range.start).sum();
        match self.compared.load(Ordering::Relaxed) {
            compared if compared == own => Ok(()),
            compared => {
                let text = format!("the load gave {compared} bytes of {own}");
                Err(Error::new(ErrorKind::Corrupt, text))
            }
        }
    }
}

/// Takes bytes by comparing them.
struct Comparing<'a> {
    content: Content,
    share: Share,
    manifest: &'a Manifest,
    compared: &'a AtomicU64,
}

impl TensorSink for Comparing<'_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let len = self.share.range.end - self.share.range.start;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > len) {
            return Err(Error::new(ErrorKind::InvalidInput, "bytes beyond the generated content"));
        }
        let mut expected = zeroed(CHUNK_BYTES.min(bytes.len() as u64))?;
        let whole = self.share.spec.size_bytes();
        let mut at = self.share.range.start + offset;
        for part in bytes.chunks(expected.len().max(1)) {
            let expected = &mut expected[..part.len()];
            self.content.expected(self.share.tensor, whole, at, expected);
            let differs = || part.iter().zip(expected.iter()).position(|(a, b)| a != b);
            // The comparison of slices is the fast one.
            if part != expected
                && let Some(index) = differs()
            {
                return Err(self.differs(at + index as u64, part[index], expected[index]));
            }
            at += part.len() as u64;
        }
        self.compared.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl Comparing<'_> {
    /// Says where: `at` counts in the tensor, the error's offset in the file.
    fn differs(&self, at: u64, is: u8, must: u8) -> Error {
        let name = self.share.name.as_str();
        let text = format!(
            "byte {at} of the tensor is {is:#04x}, {must:#04x} was saved, although every checksum fits"
        );
        let error = Error::new(ErrorKind::Corrupt, text).with_tensor(name);
        match self.place(at) {
            Some((file, offset)) => error.with_path(file).with_offset(offset),
            None => error,
        }
    }

    /// The file that holds a byte of the tensor, and where in it.
    fn place(&self, at: u64) -> Option<(&str, u64)> {
        let tensor = self.manifest.tensor(self.share.name.as_str())?;
        tensor.pieces.iter().find_map(|piece| {
            let range = piece.slice.ranges().next().filter(|range| range.contains(&at))?;
            let file = self.manifest.data_files().get(usize::try_from(piece.file).ok()?)?;
            Some((file.name.as_str(), piece.begin.saturating_add(at - range.start)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::Live;
    use super::*;
    use crate::catalog::CheckpointPath;
    use crate::save::{SaveOptions, save};
    use crate::storage::MemoryStorage;
    use crate::tensor::TensorName;

    /// Saves step 3 with the bytes of step `of`: every checksum fits.
    fn saved(storage: &dyn Storage, of: u64) {
        let (group, live) = (ProcessGroup::solo(), Live::new(Rank::COORDINATOR));
        let content = Content { step: 3, ranks: WorldSize::ONE, bytes: 300_000 };
        let state = live.state(&content, false).unwrap();
        live.become_step(of);
        let options = SaveOptions { step: 3, ..SaveOptions::default() };
        let path = CheckpointPath::parse("d/x").unwrap();
        save(&group, storage, &path, &state, &options).unwrap();
    }

    fn compared(storage: &dyn Storage) -> Result<(u64, SaveId)> {
        compare(&ProcessGroup::solo(), storage, &Wanted::latest("d"))
    }

    #[test]
    fn content_of_another_step_is_found_although_its_checksums_fit() {
        let storage = MemoryStorage::new();
        saved(&storage, 3);
        assert_eq!(compared(&storage).unwrap().0, 3);
        let storage = MemoryStorage::new();
        saved(&storage, 4);
        let error = compared(&storage).unwrap_err();
        assert_eq!((error.kind(), error.tensor()), (ErrorKind::Corrupt, Some("stress.0")));
        assert!(error.path().is_some_and(|path| path.ends_with(".safetensors")), "{error}");
        assert!(error.offset().is_some_and(|offset| offset >= 4096), "{error}");
    }

    #[test]
    fn what_differs_is_found_wherever_it_is() {
        let storage = MemoryStorage::new();
        saved(&storage, 3);
        let (rank, world, compared) = (Rank::new(1), WorldSize::new(2).unwrap(), AtomicU64::new(0));
        let mut expected = Expected { rank, world, content: None, manifest: None, compared };
        let found = crate::catalog::find(&storage, &Wanted::latest("d")).unwrap();
        expected.prepare(&found.manifest).unwrap();
        let content = Content::of(&found.manifest).unwrap();
        let mut bytes = vec![0; 75_000 - 37_500];
        content.expected(2, 75_000, 37_500, &mut bytes);
        for at in [0, 1, 37_499] {
            let mut targets = expected.targets().unwrap();
            let name = TensorName::new("stress.2").unwrap();
            let sink = &mut targets.targets_mut().get_mut(&name).unwrap()[0].sink;
            sink.write_at(0, &bytes).unwrap();
            sink.write_at(500, &bytes[500..700]).unwrap();
            bytes[at] ^= 1;
            let error = sink.write_at(0, &bytes).unwrap_err();
            assert!(error.message().contains(&format!("byte {} of", 37_500 + at)), "{error}");
            assert!(sink.write_at(0, &[0; 37_501]).is_err());
            bytes[at] ^= 1;
        }
        // Not every byte was there.
        assert!(expected.take_values(&found.manifest, None).is_err());
    }
}
