//! Templates of names that other systems use, for runs that are to look alike.

/// TorchLingo's, without its extension: `checkpoint_step_00000100`.
pub const TORCHLINGO: &str = "checkpoint_step_{step:08d}";
/// Dream Trainer's: `step=000100__metric=0.125000`. Needs a monitored metric.
///
/// Its point stays a point. The metric is read from the manifest, never from the name, so one
/// that is negative, not a number or tiny loses nothing.
pub const DREAM_TRAINER: &str = "step={step:06d}__metric={metric:.6f}";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::autosave::{KnownFields, NameTemplate, Number};
    use crate::error::Result;

    fn rendered(template: &str, step: i64, metric: f64) -> Result<String> {
        let known = KnownFields::new::<[&str; 0]>([]).with_field("metric");
        let values = [("step", Number::Int(step)), ("metric", Number::Float(metric))];
        let values: BTreeMap<_, _> = values.map(|(name, number)| (name.to_owned(), number)).into();
        let rendered = NameTemplate::parse(template, &known)?.render(1, &values);
        assert_eq!(rendered.warning, None);
        Ok(rendered.name)
    }

    #[test]
    fn presets_give_the_names_of_the_systems_they_come_from() -> Result<()> {
        assert_eq!(rendered(TORCHLINGO, 100, 0.0)?, "checkpoint_step_00000100");
        assert_eq!(rendered(TORCHLINGO, 123_456_789, 0.0)?, "checkpoint_step_123456789");
        for (metric, name) in [
            (0.125, "step=000100__metric=0.125000"),
            (-0.25, "step=000100__metric=-0.250000"),
            (1e-9, "step=000100__metric=0.000000"),
            (f64::NAN, "step=000100__metric=nan"),
            (f64::NEG_INFINITY, "step=000100__metric=-inf"),
        ] {
            assert_eq!(rendered(DREAM_TRAINER, 100, metric)?, name);
        }
        Ok(())
    }
}
