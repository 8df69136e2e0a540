use tch::Device;

use super::*;

/// A variable whose gradient is `gradient`.
fn with_gradient(gradient: &[f32], kind: Kind) -> Tensor {
    let gradient = Tensor::from_slice(gradient).to_kind(kind);
    let x = gradient.zeros_like().set_requires_grad(true);
    (&x * gradient).sum(kind).backward();
    x
}

fn gradient(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.grad().to_kind(Kind::Double).view(-1)).unwrap()
}

fn without_gradient() -> Tensor {
    Tensor::zeros([2], (Kind::Float, Device::Cpu)).set_requires_grad(true)
}

#[test]
fn the_norm_of_all_gradients_is_brought_to_the_bound() {
    // 2-norm of (2, 3, 6) is 7.
    let parameters = [
        with_gradient(&[2.0, 3.0], Kind::Float),
        without_gradient(),
        with_gradient(&[6.0], Kind::Float),
    ];
    assert_eq!(Clip::Norm(3.5).apply(&parameters).unwrap(), 7.0);
    let factor = 3.5f32 * (1.0 / (7.0f32 + 1e-6));
    assert_eq!(gradient(&parameters[0]), [2.0, 3.0].map(|g| f64::from(g * factor)));
    assert_eq!(gradient(&parameters[2]), [f64::from(6.0f32 * factor)]);
}

#[test]
fn a_norm_within_the_bound_changes_no_bit() {
    let values = [0.1f32, -0.7, 1e-20];
    let x = with_gradient(&values, Kind::Float);
    let norm = Clip::Norm(1.0).apply(&[&x]).unwrap();
    assert!((norm - 0.5f64.sqrt()).abs() < 1e-6, "{norm}");
    assert_eq!(gradient(&x), values.map(f64::from));
}

#[test]
fn the_bound_for_values_limits_both_signs() {
    let x = with_gradient(&[-5.0, 0.25, f32::INFINITY, 5.0], Kind::Float);
    assert_eq!(Clip::Value(0.5).apply(&[&x]).unwrap(), f64::INFINITY);
    assert_eq!(gradient(&x), [-0.5, 0.25, 0.5, 0.5]);
}

#[test]
fn norms_that_are_not_finite_do_what_pytorch_does() {
    let x = with_gradient(&[1.0, f32::INFINITY], Kind::Float);
    assert_eq!(Clip::Norm(1.0).apply(&[&x]).unwrap(), f64::INFINITY);
    let clipped = gradient(&x);
    assert!(clipped[0] == 0.0 && clipped[1].is_nan(), "{clipped:?}");
    let x = with_gradient(&[1.0, f32::NAN], Kind::Float);
    assert!(Clip::Norm(1.0).apply(&[&x]).unwrap().is_nan());
    assert!(gradient(&x).iter().all(|g| g.is_nan()));
}

#[test]
fn kinds_may_be_mixed_and_half_does_not_overflow() {
    // 80000, the norm of the first, is more than a half can hold.
    let parameters = [
        with_gradient(&[48_000.0, 64_000.0], Kind::Half),
        with_gradient(&[60_000.0], Kind::Double),
    ];
    let norm = Clip::Norm(1000.0).apply(&parameters).unwrap();
    assert!((norm - 100_000.0).abs() < 1e-3, "{norm}");
    assert!((gradient(&parameters[0])[1] - 640.0).abs() < 1.0, "{:?}", gradient(&parameters[0]));
    assert!((gradient(&parameters[1])[0] - 600.0).abs() < 1e-3);
}

#[test]
fn a_parameter_given_twice_counts_once() {
    let x = with_gradient(&[3.0, 4.0], Kind::Float);
    assert_eq!(Clip::Norm(10.0).apply(&[&x, &x]).unwrap(), 5.0);
    assert_eq!(Clip::Norm(1.0).apply::<Tensor>(&[]).unwrap(), 0.0);
}

#[test]
fn bounds_that_cannot_work_are_refused() {
    for bound in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        for clip in [Clip::Norm(bound), Clip::Value(bound)] {
            let error = clip.apply(&[without_gradient()]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{clip:?}");
        }
    }
}

#[test]
fn settings_have_a_stable_form() {
    assert_eq!(serde_json::to_string(&Clip::Norm(1.5)).unwrap(), r#"{"norm":1.5}"#);
    assert_eq!(serde_json::from_str::<Clip>(r#"{"value":2.0}"#).unwrap(), Clip::Value(2.0));
}
