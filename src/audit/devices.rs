//! Boxes in the memory of devices, which hash them where they lie.

use std::sync::Arc;

use super::digest::bytes_of;
use super::fingerprint::Sums;
use crate::device::{Device, DeviceMemory, Fingerprinter};
use crate::error::{Error, ErrorKind, Result};
use crate::state::TensorEntry;

/// What one device hashes.
struct Work {
    /// Dropped first: waits for the device.
    fingerprinter: Option<Box<dyn Fingerprinter>>,
    device: Arc<dyn Device>,
    boxes: Vec<Held>,
}

/// A box in the memory of a device, and the number of its entry.
struct Held {
    index: usize,
    memory: DeviceMemory,
}

/// All devices that hash boxes of this rank.
#[derive(Default)]
pub(super) struct Devices(Vec<Work>);

impl Devices {
    /// Also the numbers of the entries, in their order, that are left to the host.
    pub(super) fn of(entries: &[&TensorEntry]) -> (Self, Vec<usize>) {
        let (mut devices, mut here) = (Self::default(), Vec::new());
        for (index, entry) in entries.iter().enumerate() {
            let memory = entry.source.device_memory();
            match memory.filter(|memory| memory.size_bytes() == bytes_of(entry)) {
                Some(memory) => devices.add(Held { index, memory }),
                None => here.push(index),
            }
        }
        for work in &mut devices.0 {
            work.fingerprinter = work.device.fingerprinter(work.boxes.len());
            if work.fingerprinter.is_none() {
                here.extend(work.boxes.drain(..).map(|held| held.index));
            }
        }
        here.sort_unstable();
        (devices, here)
    }

    fn add(&mut self, held: Held) {
        let name = held.memory.device().name();
        match self.0.iter_mut().find(|work| work.device.name() == name) {
            Some(work) => work.boxes.push(held),
            None => {
                let device = Arc::clone(held.memory.device());
                self.0.push(Work { device, boxes: vec![held], fingerprinter: None });
            }
        }
    }

    /// Gives every device all of its work.
    ///
    /// # Errors
    /// [`ErrorKind::Device`]. [`Devices::collect`] is called all the same.
    pub(super) fn queue(&mut self) -> Result<()> {
        for Work { device, boxes, fingerprinter } in &mut self.0 {
            let Some(fingerprinter) = fingerprinter else { continue };
            for held in boxes {
                let (address, bytes) = (held.memory.address(), held.memory.size_bytes());
                // SAFETY: `held` keeps the memory, and is dropped after the fingerprinter.
                #[allow(unsafe_code)]
                let queued = unsafe { fingerprinter.queue(address, bytes) };
                queued.map_err(|error| on(device.as_ref(), &error))?;
            }
        }
        Ok(())
    }

    /// Waits for every device, also after one has failed. Sums with the numbers of their entries.
    ///
    /// # Errors
    /// [`ErrorKind::Device`], [`ErrorKind::Deadline`].
    pub(super) fn collect(&mut self, progress: &dyn Fn(u64)) -> Result<Vec<(usize, Sums)>> {
        let collected: Vec<_> = self.0.iter_mut().map(|work| work.collect(progress)).collect();
        let mut all = Vec::new();
        for sums in collected {
            all.extend(sums?);
        }
        Ok(all)
    }
}

impl Work {
    fn collect(&mut self, progress: &dyn Fn(u64)) -> Result<Vec<(usize, Sums)>> {
        let Some(fingerprinter) = &mut self.fingerprinter else { return Ok(Vec::new()) };
        let sums = fingerprinter.collect().map_err(|error| on(self.device.as_ref(), &error))?;
        if sums.len() != self.boxes.len() {
            let (has, of) = (sums.len(), self.boxes.len());
            let message = format!("{}: hashes of {has} boxes, not of {of}", self.device.name());
            return Err(Error::new(ErrorKind::Device, message));
        }
        progress(self.boxes.iter().map(|held| held.memory.size_bytes()).sum());
        let sums = self.boxes.iter().zip(sums);
        Ok(sums.map(|(held, sums)| (held.index, Sums::new(sums))).collect())
    }
}

/// The error with the device on which it happened.
fn on(device: &dyn Device, error: &Error) -> Error {
    let message = format!("hashing replicas on {}: {}", device.name(), error.message());
    let named = Error::new(error.kind(), message);
    error.help().map_or(named.clone(), |help| named.with_help(help))
}
