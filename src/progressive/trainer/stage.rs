//! How a stage of training begins: on all ranks alike, or on none.

use serde::{Deserialize, Serialize};

use super::ProgressiveTrainer;
use crate::agree::{agree, unlike};
use crate::error::{Error, ErrorKind, Result};
use crate::group::Channel;
use crate::progressive::adapters::LoraConfig;
use crate::progressive::architecture::Architecture;
use crate::progressive::described::RackInfo;
use crate::progressive::rack::Rack;
use crate::progressive::training::{Stage, TrunkStrategy};

/// What a rank is about to do.
#[derive(Serialize, Deserialize)]
struct About {
    what: String,
    stage: Stage,
    /// Steps of the run, and of the stage.
    steps: (u64, u64),
    rack: RackInfo,
}

impl About {
    fn differs(ours: &Self, theirs: &Self) -> Option<String> {
        unlike("what is trained", &ours.what, &theirs.what)
            .or_else(|| unlike("the stage", &ours.stage, &theirs.stage))
            .or_else(|| unlike("the number of steps", &ours.steps, &theirs.steps))
            .or_else(|| Self::racks_differ(&ours.rack, &theirs.rack))
    }

    fn racks_differ(ours: &RackInfo, theirs: &RackInfo) -> Option<String> {
        let count = unlike("the number of stacks", &ours.current_stacks, &theirs.current_stacks);
        let pairs = ours.stack_info.iter().zip(&theirs.stack_info).enumerate();
        let stack = pairs.filter(|(_, (ours, theirs))| ours != theirs).map(|(index, pair)| {
            unlike(&format!("the stack at {index}"), pair.0, pair.1).unwrap_or_default()
        });
        let rest = || (ours != theirs).then(|| "the rack differs".to_owned());
        count.or_else(|| stack.into_iter().next()).or_else(rest)
    }
}

impl ProgressiveTrainer {
    /// Phase "stage": lets every rank do `act`, and see that all have the same rack to train in the
    /// same way.
    ///
    /// # Errors
    /// That of a rank, on all of them; [`ErrorKind::Disagreement`].
    pub(super) fn together<A: Architecture>(
        &mut self,
        rack: &mut Rack<A>,
        what: &str,
        act: impl FnOnce(&mut Self, &mut Rack<A>) -> Result<()>,
    ) -> Result<()> {
        let group = self.group.clone();
        let say = || {
            act(self, rack)?;
            let info = &self.training.info;
            let steps = (info.step, info.stage_step);
            Ok(About { what: what.to_owned(), stage: info.stage, steps, rack: rack.info() })
        };
        group.phase_all(Channel::Save, "stage", say, |said: Vec<About>| {
            let help = "every rank is to train an equal rack in the same way";
            agree(&said, About::differs, help).map(drop)
        })
    }

    pub(super) fn check_room<A: Architecture>(
        &self,
        rack: &Rack<A>,
        target_stacks: usize,
    ) -> Result<()> {
        let max = rack.info().max_stacks;
        if target_stacks > max {
            let message = format!("{target_stacks} stacks, the rack may have {max}");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let adds = target_stacks > rack.stacks().len();
        if adds && self.config.trunk != TrunkStrategy::Frozen { unmerged(rack) } else { Ok(()) }
    }

    pub(super) fn begin_stack<A: Architecture>(&mut self, rack: &mut Rack<A>) -> Result<()> {
        let trunk = self.config.trunk.clone();
        let attached = match &trunk {
            TrunkStrategy::Adapters(adapters) => attach_all(rack, adapters)?,
            TrunkStrategy::Frozen | TrunkStrategy::Trained => Vec::new(),
        };
        let (blocks, precision) = (self.config.blocks_per_stack, self.config.new_stack_precision);
        let added = rack.add_stack(blocks, precision);
        let id = added.or_else(|error| detach_all(rack, &attached).and(Err(error)))?;
        match trunk {
            TrunkStrategy::Trained => {
                for index in 0..rack.stacks().len() {
                    rack.set_frozen(index, false)?;
                }
                rack.set_ends_frozen(false, false)?;
            }
            TrunkStrategy::Adapters(_) => rack.freeze_trunk(id)?,
            TrunkStrategy::Frozen => {
                rack.freeze_trunk(id)?;
                // Merged, they do their work and are not trained.
                for index in 0..rack.stacks().len() {
                    if rack.stack(index)?.adapters().is_some() {
                        rack.merge_adapters(index)?;
                    }
                }
            }
        }
        let index = rack.index_of(id).unwrap_or_default();
        self.begin(rack, Stage::Stack(id), index, &trunk)
    }

    /// Does nothing if that is what is trained already; adapters that were detached since are none.
    pub(super) fn begin_adapters<A: Architecture>(
        &mut self,
        rack: &mut Rack<A>,
        adapters: &LoraConfig,
    ) -> Result<()> {
        unmerged(rack)?;
        let attached = attach_all(rack, adapters)?;
        if self.training.info.stage == Stage::Adapters && attached.is_empty() {
            return Ok(());
        }
        for index in 0..rack.stacks().len() {
            rack.set_frozen(index, true)?;
        }
        rack.set_ends_frozen(true, true)?;
        let last = rack.stacks().len().saturating_sub(1);
        self.begin(rack, Stage::Adapters, last, &TrunkStrategy::Adapters(adapters.clone()))
    }
}

/// Refuses adapters that are merged where they are to be trained.
fn unmerged<A: Architecture>(rack: &Rack<A>) -> Result<()> {
    let Some(index) = rack.stacks().iter().position(|stack| stack.is_merged()) else {
        return Ok(());
    };
    let message = format!("the adapters of stack {index} are merged, and are to be trained");
    Err(Error::new(ErrorKind::InvalidInput, message)
        .with_help("unmerge them, or detach them to keep them in the weights for good"))
}

/// Attaches adapters to every stack that has none, or to none; which got some.
fn attach_all<A: Architecture>(rack: &mut Rack<A>, adapters: &LoraConfig) -> Result<Vec<usize>> {
    let mut attached = Vec::new();
    for index in 0..rack.stacks().len() {
        if rack.stack(index)?.adapters().is_none() {
            let done = rack.attach_adapters(index, adapters);
            done.or_else(|error| detach_all(rack, &attached).and(Err(error)))?;
            attached.push(index);
        }
    }
    Ok(attached)
}

fn detach_all<A: Architecture>(rack: &mut Rack<A>, indices: &[usize]) -> Result<()> {
    indices.iter().try_for_each(|index| rack.detach_adapters(*index))
}
