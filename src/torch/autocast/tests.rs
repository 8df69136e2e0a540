use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;

use super::*;

fn matrix() -> Tensor {
    Tensor::eye(4, (Kind::Float, Device::Cpu)) * 1.25
}

/// Kind of a product of f32 matrices: shows whether autocast is on for this thread.
fn kind() -> Kind {
    matrix().matmul(&matrix()).kind()
}

#[test]
fn matrix_products_run_in_the_kind_asked_for() {
    for asked in [Kind::BFloat16, Kind::Half] {
        assert_eq!(kind(), Kind::Float);
        let guard = Autocast::enter(Device::Cpu, asked).unwrap();
        assert_eq!(kind(), asked);
        assert_eq!(matrix().matmul(&matrix()).double_value(&[1, 1]), 1.5625);
        drop(guard);
    }
    assert_eq!(kind(), Kind::Float);
}

#[test]
fn nested_guards_restore_the_outer_one() {
    let _outer = Autocast::enter(Device::Cpu, Kind::BFloat16).unwrap();
    {
        let _inner = Autocast::enter(Device::Cpu, Kind::Half).unwrap();
        assert_eq!(kind(), Kind::Half);
    }
    assert_eq!(kind(), Kind::BFloat16);
}

#[test]
fn a_panic_restores_what_was_before() {
    let run = || {
        let _guard = Autocast::enter(Device::Cpu, Kind::BFloat16).unwrap();
        assert_eq!(kind(), Kind::BFloat16);
        panic!("on purpose");
    };
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    assert_eq!(kind(), Kind::Float);
}

#[test]
fn other_threads_and_other_devices_are_left_alone() {
    let guard = Autocast::enter(Device::Cpu, Kind::BFloat16).unwrap();
    assert_eq!(std::thread::spawn(kind).join().unwrap(), Kind::Float);
    drop(guard);
    // Needs no CUDA: the state is there in any build.
    let _guard = Autocast::enter(Device::Cuda(0), Kind::Half).unwrap();
    assert_eq!(kind(), Kind::Float);
}

#[test]
fn gradients_reach_f32_parameters_and_casts_are_forgotten() {
    let mut weight = matrix().set_requires_grad(true);
    let output = |weight: &Tensor| {
        let forward = || matrix().matmul(weight).sum(Kind::Float);
        Precision::MixedBfloat16.run(Device::Cpu, forward).unwrap()
    };
    let loss = output(&weight);
    assert_eq!((loss.kind(), loss.double_value(&[])), (Kind::Float, 6.25));
    loss.backward();
    assert_eq!((weight.grad().kind(), weight.grad().double_value(&[0, 0])), (Kind::Float, 1.25));
    let _ = tch::no_grad(|| weight.g_mul_scalar_(2.0));
    assert_eq!(output(&weight).double_value(&[]), 12.5);
}

#[test]
fn what_autocast_cannot_do_is_refused() {
    let refused = [
        Autocast::enter(Device::Cpu, Kind::Float),
        Autocast::enter(Device::Cpu, Kind::Int8),
        Autocast::enter(Device::Vulkan, Kind::Half),
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    assert_eq!(kind(), Kind::Float);
}

#[test]
fn precisions_say_what_they_need() {
    let all = [Precision::Full, Precision::MixedHalf, Precision::MixedBfloat16];
    assert_eq!(all.map(Precision::kind), [None, Some(Kind::Half), Some(Kind::BFloat16)]);
    assert_eq!(all.map(Precision::needs_scaler), [false, true, false]);
    assert_eq!(
        all.map(|p| p.run(Device::Cpu, kind).unwrap()),
        all.map(|p| p.kind().unwrap_or(Kind::Float))
    );
    let text = all.map(|p| serde_json::to_string(&p).unwrap());
    assert_eq!(text, ["\"full\"", "\"mixed_half\"", "\"mixed_bfloat16\""]);
}
