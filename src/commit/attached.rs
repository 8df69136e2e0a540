//! Attached files in an attempt.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Attempt, nobody_elses};
use crate::error::Result;
use crate::sabotage::{self, Defect};
use crate::storage::Directory;
use crate::sweep::Pace;

impl Attempt {
    /// Writes the attached files and makes them durable, but for the entry of their top folder,
    /// which goes with the attempt's own. Names have been checked.
    pub(crate) fn write_attached(
        &self,
        files: &BTreeMap<String, Arc<[u8]>>,
        pace: &Pace,
    ) -> Result<()> {
        let mut folders = BTreeMap::new();
        for (name, bytes) in files {
            let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
            let dir = self.folder(folder, &mut folders)?;
            let out = dir.create_file(file).map_err(nobody_elses)?;
            out.write_at(0, bytes)?;
            sabotage::finished(Defect::DataNotSynced, || out.finish())?;
            pace.progress.add(1 + bytes.len() as u64);
        }
        // Deepest first: what a folder lists is durable before the folder is.
        folders.values().rev().try_for_each(|dir| dir.sync())
    }

    /// The folder of that name, made with its ancestors where it is not among `made`.
    fn folder(
        &self,
        name: &str,
        made: &mut BTreeMap<String, Arc<dyn Directory>>,
    ) -> Result<Arc<dyn Directory>> {
        if name.is_empty() {
            return Ok(self.dir.clone());
        }
        if let Some(dir) = made.get(name) {
            return Ok(dir.clone());
        }
        let (parent, last) = name.rsplit_once('/').unwrap_or(("", name));
        let dir = self.folder(parent, made)?.create_dir(last).map_err(nobody_elses)?;
        made.insert(name.to_owned(), dir.clone());
        Ok(dir)
    }
}
