//! Everything of libtorch that a loop registers, through a checkpointer.

use std::path::Path;

use tch::{Device, Kind, Tensor, nn, nn::Module};

use crate::checkpointer::{At, Checkpointer, CheckpointerConfig, Parts};
use crate::error::Result;
use crate::group::ProcessGroup;
use crate::torch::{
    AdamW, Ema, EmaConfig, ExponentialLr, GradScaler, GradScalerConfig, Optimizer, RandomState,
    Scheduler, SchedulerUnit, Sgd, testing,
};

/// Two models that are trained against one another.
struct Game {
    stores: [nn::VarStore; 2],
    models: [nn::Linear; 2],
    optimizers: [Optimizer; 2],
    schedule: Scheduler,
    ema: Ema,
    scaler: GradScaler,
    random: RandomState,
}

impl Game {
    fn new() -> Result<Self> {
        let stores = [nn::VarStore::new(Device::Cpu), nn::VarStore::new(Device::Cpu)];
        let models = [0, 1].map(|i: usize| {
            nn::linear(stores[i].root() / "linear", 3, 3, nn::LinearConfig::default())
        });
        let momentum = Sgd { lr: 0.1, momentum: 0.9, ..Sgd::default() };
        let mut optimizers =
            [Optimizer::new(AdamW::default(), &stores[0])?, Optimizer::new(momentum, &stores[1])?];
        let decay = ExponentialLr { gamma: 0.9 };
        Ok(Self {
            schedule: Scheduler::new(decay, SchedulerUnit::Step, &mut optimizers[1])?,
            ema: Ema::new(EmaConfig::default(), &stores[0])?,
            scaler: GradScaler::new(GradScalerConfig { growth_interval: 2, ..Default::default() })?,
            random: RandomState::of(Device::Cpu),
            stores,
            models,
            optimizers,
        })
    }

    fn parts(&mut self) -> Parts<'_> {
        let [maker, judge] = &mut self.stores;
        let [makers, judges] = &mut self.optimizers;
        Parts::new()
            .named_model("maker", maker)
            .named_model("judge", judge)
            .named_optimizer("maker", makers)
            .named_optimizer("judge", judges)
            .named_scheduler("judge", &mut self.schedule)
            .with("ema", &mut self.ema)
            .with("scaler", &mut self.scaler)
            .with("rng", &mut self.random)
    }

    fn step(&mut self) -> Result<()> {
        let made = self.models[0].forward(&Tensor::randn([4, 3], (Kind::Float, Device::Cpu)));
        let loss = self.models[1].forward(&made).square().mean(Kind::Float);
        self.optimizers.iter_mut().try_for_each(Optimizer::zero_grad)?;
        loss.backward();
        self.optimizers.iter_mut().try_for_each(Optimizer::step)?;
        self.scaler.update(false);
        self.ema.update()?;
        self.schedule.advance(&mut self.optimizers[1], None)
    }

    /// All that could differ.
    fn numbers(&mut self) -> Result<(Vec<Tensor>, f64, f64)> {
        self.ema.swap()?;
        let averages = self.stores[0].trainable_variables().iter().map(Tensor::copy).collect();
        self.ema.swap()?;
        let mut all: Vec<Tensor> = averages;
        for store in &self.stores {
            all.extend(store.trainable_variables().iter().map(Tensor::copy));
        }
        Ok((all, self.optimizers[1].lr(), self.scaler.scale()))
    }
}

fn checkpointer(place: &Path) -> Result<Checkpointer> {
    let config = CheckpointerConfig::new("game").in_directory(place).on_signal(false);
    Checkpointer::new(&ProcessGroup::solo(), config.ignore_time_limit())
}

#[test]
fn two_models_with_all_around_them_go_on_bit_for_bit() {
    let _generator = testing::generator();
    let scratch = tempfile::tempdir().unwrap();
    let mut whole = Game::new().unwrap();
    for _ in 0..3 {
        whole.step().unwrap();
    }
    checkpointer(scratch.path()).unwrap().save(&At::step(3), &mut whole.parts()).unwrap();
    for _ in 0..3 {
        whole.step().unwrap();
    }
    let mut resumed = Game::new().unwrap();
    let found = checkpointer(scratch.path()).unwrap().resume(&mut resumed.parts()).unwrap();
    assert_eq!(found.unwrap().state.step, 3);
    for _ in 0..3 {
        resumed.step().unwrap();
    }
    assert_eq!(resumed.numbers().unwrap(), whole.numbers().unwrap());
}
