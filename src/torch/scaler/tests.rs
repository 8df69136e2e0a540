use tch::Device;

use super::*;

fn scaler(config: GradScalerConfig) -> GradScaler {
    GradScaler::new(config).unwrap()
}

fn small() -> GradScalerConfig {
    GradScalerConfig { init_scale: 8.0, growth_interval: 3, ..GradScalerConfig::default() }
}

fn variable(values: &[f32], kind: Kind) -> Tensor {
    Tensor::from_slice(values).to_kind(kind).set_requires_grad(true)
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).view(-1)).unwrap()
}

#[test]
fn unscaled_gradients_are_those_of_the_plain_loss() {
    let factors = Tensor::from_slice(&[0.1f32, -3.0, 7.5]);
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
        let (x, unused) = (variable(&[1.0, 2.0, 3.0], kind), variable(&[1.0], kind));
        let loss = || (&x * factors.to_kind(kind)).sum(kind);
        loss().backward();
        let plain = numbers(&x.grad());
        let mut gradient = x.grad();
        let _ = gradient.zero_();
        let scaler = scaler(GradScalerConfig::default());
        scaler.scale_loss(&loss()).unwrap().backward();
        assert_eq!(numbers(&x.grad())[1], -3.0 * 65536.0);
        assert!(!scaler.unscale(&[&x, &unused, &x]).unwrap());
        assert_eq!(numbers(&x.grad()), plain, "{kind:?}");
    }
}

#[test]
fn half_gradients_are_divided_in_f32() {
    let x = variable(&[1.0, 1.0], Kind::Half);
    let factors = Tensor::from_slice(&[2048.0f32, 3.0]).to_kind(Kind::Half);
    (&x * factors).sum(Kind::Half).backward();
    // The reciprocal of the scale, 2^-25, is 0 as a half.
    let scaler = scaler(GradScalerConfig { init_scale: 33_554_432.0, ..small() });
    assert!(!scaler.unscale(&[&x]).unwrap());
    assert_eq!(numbers(&x.grad())[0], 2f64.powi(-14));
}

#[test]
fn a_scalar_loss_in_half_does_not_overflow() {
    let loss = Tensor::from(3.0f32).to_kind(Kind::Half);
    let scaled = scaler(GradScalerConfig::default()).scale_loss(&loss).unwrap();
    assert_eq!(numbers(&scaled), [196_608.0]);
}

#[test]
fn infinite_and_nan_gradients_are_found_anywhere() {
    let scaler = scaler(small());
    for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        for place in 0..3 {
            let mut all = [8.0f32; 3];
            all[place] = bad;
            let parameters = all.map(|factor| {
                let x = variable(&[1.0, 1.0], Kind::Float);
                (&x * f64::from(factor)).sum(Kind::Float).backward();
                x
            });
            assert!(scaler.unscale(&parameters).unwrap(), "{bad} at {place}");
            assert_eq!(numbers(&parameters[(place + 1) % 3].grad()), [1.0, 1.0]);
        }
    }
    assert!(!scaler.unscale::<Tensor>(&[]).unwrap());
}

#[test]
fn sparse_gradients_are_refused() {
    let table = Tensor::zeros([4, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let rows = Tensor::embedding(&table, &Tensor::from_slice(&[1i64]), -1, false, true);
    rows.sum(Kind::Float).backward();
    let error = scaler(small()).unscale(&[table]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn the_scale_grows_and_backs_off() {
    let mut scaler = scaler(small());
    let mut course = Vec::new();
    for found_inf in [false, false, true, false, false, false, false, true] {
        scaler.update(found_inf);
        course.push((scaler.scale(), scaler.growth_tracker()));
    }
    let expected = [(8.0, 1), (8.0, 2), (4.0, 0), (4.0, 1), (4.0, 2), (8.0, 0), (8.0, 1), (4.0, 0)];
    assert_eq!(course, expected);
}

#[test]
fn the_scale_stays_a_normal_f32_and_so_does_its_reciprocal() {
    let mut scaler = scaler(GradScalerConfig { growth_interval: 1, ..small() });
    for (found_inf, end) in [(true, -126), (false, 126), (true, -126)] {
        (0..300).for_each(|_| scaler.update(found_inf));
        assert_eq!(scaler.scale(), 2f64.powi(end));
        assert!((1.0 / to_f32(scaler.scale())).is_normal());
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let good = small();
    let bad = [
        GradScalerConfig { init_scale: 0.0, ..good },
        GradScalerConfig { init_scale: f64::NAN, ..good },
        GradScalerConfig { init_scale: 1e39, ..good },
        GradScalerConfig { growth_factor: 1.0, ..good },
        GradScalerConfig { growth_factor: f64::INFINITY, ..good },
        GradScalerConfig { backoff_factor: 1.0, ..good },
        GradScalerConfig { backoff_factor: 0.0, ..good },
        GradScalerConfig { growth_interval: 0, ..good },
    ];
    for config in bad {
        let error = GradScaler::new(config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{config:?}");
    }
}

#[test]
fn a_loaded_scaler_continues_as_the_saved_one() {
    let config = GradScalerConfig { growth_factor: 1.1, backoff_factor: 0.7, ..small() };
    let mut saved = scaler(config);
    [true, false, false, false, false, true, false].into_iter().for_each(|inf| saved.update(inf));
    let mut values = Values::new();
    saved.save_values("scaler", &mut values).unwrap();
    let names: Vec<_> = values.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["scaler.config", "scaler.growth_tracker", "scaler.scale"]);
    let mut loaded = scaler(GradScalerConfig::default());
    loaded.load_values("scaler", &values).unwrap();
    assert_eq!(GradScaler::from_values("scaler", &values).unwrap(), saved);
    for step in 0..20 {
        assert_eq!(loaded, saved);
        assert_ne!(saved.scale(), 8.0);
        loaded.update(step % 7 == 0);
        saved.update(step % 7 == 0);
    }
}

#[test]
fn values_that_do_not_fit_are_refused_and_change_nothing() {
    let mut target = scaler(small());
    let config = |config: GradScalerConfig| Value::json(&config).unwrap();
    let bad = [
        ("s.scale", Value::Float(0.0)),
        ("s.scale", Value::Float(-2.0)),
        ("s.scale", Value::Float(f64::NAN)),
        ("s.scale", Value::Float(f64::INFINITY)),
        ("s.scale", Value::Float(1e300)),
        ("s.scale", Value::Int(8)),
        ("s.growth_tracker", Value::Int(-1)),
        ("s.growth_tracker", Value::Int(3)),
        ("s.growth_tracker", Value::Int(i64::MAX)),
        ("s.config", config(GradScalerConfig { growth_factor: 0.5, ..small() })),
        ("s.config", config(GradScalerConfig { growth_factor: f64::NAN, ..small() })),
        ("s.config", Value::Json("{}".to_owned())),
    ];
    for (name, value) in bad {
        let mut values = Values::new();
        scaler(small()).save_values("s", &mut values).unwrap();
        target.check_values("s", &values).unwrap();
        values.set(name, value.clone());
        let errors = [
            target.check_values("s", &values).unwrap_err(),
            target.load_values("s", &values).unwrap_err(),
        ];
        assert!(errors.iter().all(|e| e.kind() == ErrorKind::Mismatch), "{name} {value:?}");
        assert_eq!(target, scaler(small()));
    }
    assert_eq!(target.check_values("s", &Values::new()).unwrap_err().kind(), ErrorKind::NotFound);
}
