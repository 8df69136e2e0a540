//! Training from the first step again, with the variables as they are.

use crate::error::Result;
use crate::handler::auto_save::Line;
use crate::handler::checkpoint::OPTIMIZER;
use crate::handler::parts::Parts;
use crate::handler::{History, InEpoch, Model, NNHandler};
use crate::state::{StateDict, Stateful};
use crate::torch::{Ema, GradScaler, Optimizer, Scheduler};

impl<M: Model> NNHandler<M> {
    /// Forgets what was learned, but for the variables.
    pub(super) fn begin_anew(&mut self) -> Result<()> {
        let (optimizer, scheduler) = match &self.optimizer {
            Some(optimizer) => {
                let mut fresh = self.fresh_optimizer(optimizer)?;
                let scheduler = self.parts.scheduler.as_ref();
                let scheduler =
                    scheduler.map(|s| Scheduler::new(s.config().clone(), s.unit(), &mut fresh));
                (Some(fresh), scheduler.transpose()?)
            }
            None => (None, None),
        };
        let scaler =
            self.parts.scaler.as_ref().map(|s| GradScaler::new(*s.config())).transpose()?;
        let ema = self.parts.ema.as_ref().map(|e| Ema::new(*e.config(), &self.vars)).transpose()?;
        self.optimizer = optimizer;
        self.parts = Parts { scheduler, scaler, ema };
        (self.epoch, self.step, self.in_epoch) = (0, 0, InEpoch::default());
        self.history = History::default();
        self.line = Line::default();
        if let Some(saver) = &mut self.auto_saver {
            saver.forget();
        }
        Ok(())
    }

    /// The same settings, groups and sharing, without moments.
    fn fresh_optimizer(&self, optimizer: &Optimizer) -> Result<Optimizer> {
        let mut state = StateDict::new();
        optimizer.save_state(OPTIMIZER, &mut state)?;
        let mut fresh = Optimizer::of_values(OPTIMIZER, &state.values, &self.vars, &self.group)?;
        let scheduler = self.parts.scheduler.as_ref();
        for (index, group) in fresh.groups_mut().iter_mut().enumerate() {
            let Some(former) = optimizer.groups().get(index) else { continue };
            let base = scheduler.and_then(|scheduler| scheduler.base_lrs().get(index));
            (group.lr, group.weight_decay) = (*base.unwrap_or(&former.lr), former.weight_decay);
        }
        Ok(fresh)
    }
}
