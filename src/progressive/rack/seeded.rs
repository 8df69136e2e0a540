//! Values that follow from a seed alone, while the generators of the process stay as they were.

use parking_lot::ReentrantMutex;

use super::Rack;
use crate::error::Result;
use crate::progressive::architecture::Architecture;
use crate::torch::{
    cpu_rng_state, cuda_devices, cuda_rng_state, set_cpu_rng_state, set_cuda_rng_state,
};

/// Held while the generators are someone else's: ranks that are threads share them. Reentrant, as
/// an architecture may build a rack within a rack.
static GENERATORS: ReentrantMutex<()> = ReentrantMutex::new(());

/// The generators of the process, which get their states back when this is dropped, even by a
/// panic of the architecture.
struct Generators {
    cpu: Vec<u8>,
    cuda: Vec<(u16, Vec<u8>)>,
}

impl Generators {
    /// All of them, as seeding is of all devices.
    fn now() -> Result<Self> {
        let devices = u16::try_from(cuda_devices()).unwrap_or(0);
        let cuda = (0..devices).map(|index| Ok((index, cuda_rng_state(index)?)));
        Ok(Self { cpu: cpu_rng_state()?, cuda: cuda.collect::<Result<_>>()? })
    }
}

impl Drop for Generators {
    fn drop(&mut self) {
        // A state that was just read from a generator is one that it takes.
        let _ = set_cpu_rng_state(&self.cpu);
        for (index, state) in &self.cuda {
            let _ = set_cuda_rng_state(*index, state);
        }
    }
}

impl<A: Architecture> Rack<A> {
    /// Runs `make` with generators that follow from the seed and `number` alone, and gives those
    /// of the process back as they were. Another thread that draws from them meanwhile, other than
    /// to build a rack, must not be.
    pub(in crate::progressive) fn seeded<T>(
        &self,
        number: u32,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let _alone = GENERATORS.lock();
        let _before = Generators::now()?;
        tch::manual_seed(mixed(self.seed, number));
        make()
    }
}

/// A seed in each bit of which both have a part: libtorch's generator on the CPU takes the lower 32
/// alone.
fn mixed(seed: u64, number: u32) -> i64 {
    let mut hasher = blake3::Hasher::new_derive_key("tch-checkpoint 2026 values of a new stack");
    hasher.update(&seed.to_le_bytes()).update(&number.to_le_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    i64::from_le_bytes(bytes) & i64::MAX
}
