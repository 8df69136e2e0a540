//! The workloads that have names.

use super::spec::{Spec, TENSORS_MAX};
use crate::error::{Error, ErrorKind, Result};
use crate::tensor::{Dtype, TensorName, TensorSpec};

/// Of all of them.
const SEED: u64 = 20_240_607;
/// Tensors of workload W2.
const MANY: usize = 20_000;

type Parameter = (String, Vec<u64>);
type Tensor = (String, Vec<u64>, Dtype);

/// The workload of that name.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a name that none has, with those that exist.
pub(super) fn spec(name: &str) -> Result<Spec> {
    let tensors = match name {
        "W1" => with_adam(&gpt2(), Dtype::F32, false),
        "W2" => small(MANY),
        "W3" => few_large(),
        "W4" => with_adam(&llama(), Dtype::BF16, true),
        _ => small(count_of(name)?),
    };
    named(name, tensors)
}

/// A spec of these tensors with the usual seed.
///
/// # Errors
/// As [`Spec::new`].
pub(super) fn named(name: &str, tensors: Vec<Tensor>) -> Result<Spec> {
    let tensor =
        |(name, shape, dtype): Tensor| Ok((TensorName::new(name)?, TensorSpec::new(dtype, shape)?));
    Spec::new(name, SEED, tensors.into_iter().map(tensor).collect::<Result<Vec<_>>>()?)
}

/// `N` of `small-N`.
fn count_of(name: &str) -> Result<usize> {
    let unknown = || {
        Error::new(ErrorKind::InvalidInput, format!("there is no workload `{name}`"))
            .with_help("there are W1, W2, W3, W4, and small-N for any number N")
    };
    let digits = name.strip_prefix("small-").ok_or_else(unknown)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(unknown());
    }
    digits.parse().ok().filter(|n| *n <= TENSORS_MAX).ok_or_else(|| {
        let message = format!("`{name}`: at most {TENSORS_MAX} tensors");
        Error::new(ErrorKind::InvalidInput, message)
    })
}

/// So many tensors of 4 KiB.
pub(super) fn small(count: usize) -> Vec<Tensor> {
    let tensor = |i| (format!("block.{:05}.param.{:02}", i / 16, i % 16), vec![32, 32], Dtype::F32);
    (0..count).map(tensor).collect()
}

fn few_large() -> Vec<Tensor> {
    let tensor = |i| (format!("big.{i}.weight"), vec![16_384, 16_384], Dtype::BF16);
    (0..4).map(tensor).collect()
}

/// GPT-2 with 124 million parameters.
fn gpt2() -> Vec<Parameter> {
    const WIDTH: u64 = 768;
    let mut all: Vec<Parameter> =
        vec![("wte.weight".into(), vec![50_257, WIDTH]), ("wpe.weight".into(), vec![1024, WIDTH])];
    let norm = |all: &mut Vec<Parameter>, name: &str| {
        all.push((format!("{name}.weight"), vec![WIDTH]));
        all.push((format!("{name}.bias"), vec![WIDTH]));
    };
    let linear = |all: &mut Vec<Parameter>, name: &str, from: u64, to: u64| {
        all.push((format!("{name}.weight"), vec![from, to]));
        all.push((format!("{name}.bias"), vec![to]));
    };
    for layer in 0..12 {
        norm(&mut all, &format!("h.{layer}.ln_1"));
        linear(&mut all, &format!("h.{layer}.attn.c_attn"), WIDTH, 3 * WIDTH);
        linear(&mut all, &format!("h.{layer}.attn.c_proj"), WIDTH, WIDTH);
        norm(&mut all, &format!("h.{layer}.ln_2"));
        linear(&mut all, &format!("h.{layer}.mlp.c_fc"), WIDTH, 4 * WIDTH);
        linear(&mut all, &format!("h.{layer}.mlp.c_proj"), 4 * WIDTH, WIDTH);
    }
    norm(&mut all, "ln_f");
    all
}

/// Two layers of a Llama with grouped keys and values, and a small vocabulary.
fn llama() -> Vec<Parameter> {
    const WIDTH: u64 = 2048;
    const INNER: u64 = 8192;
    const KEYS: u64 = 512;
    const VOCABULARY: u64 = 8192;
    let mut all: Vec<Parameter> =
        vec![("model.embed_tokens.weight".into(), vec![VOCABULARY, WIDTH])];
    for layer in 0..2 {
        let parts = [
            ("self_attn.q_proj", vec![WIDTH, WIDTH]),
            ("self_attn.k_proj", vec![KEYS, WIDTH]),
            ("self_attn.v_proj", vec![KEYS, WIDTH]),
            ("self_attn.o_proj", vec![WIDTH, WIDTH]),
            ("mlp.gate_proj", vec![INNER, WIDTH]),
            ("mlp.up_proj", vec![INNER, WIDTH]),
            ("mlp.down_proj", vec![WIDTH, INNER]),
            ("input_layernorm", vec![WIDTH]),
            ("post_attention_layernorm", vec![WIDTH]),
        ];
        let named = |(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape);
        all.extend(parts.map(named));
    }
    all.push(("model.norm.weight".into(), vec![WIDTH]));
    all
}

/// Parameters, copies of them in full precision if wanted, and both moments of Adam.
fn with_adam(parameters: &[Parameter], dtype: Dtype, has_masters: bool) -> Vec<Tensor> {
    let masters = has_masters.then_some(("optim.master.", Dtype::F32));
    let moments = [("optim.exp_avg.", Dtype::F32), ("optim.exp_avg_sq.", Dtype::F32)];
    let parts = std::iter::once(("model.", dtype)).chain(masters).chain(moments);
    let of_part = |(prefix, dtype): (&'static str, Dtype)| {
        parameters
            .iter()
            .map(move |(name, shape)| (format!("{prefix}{name}"), shape.clone(), dtype))
    };
    parts.flat_map(of_part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_workloads_have_their_sizes() {
        let sizes = ["W1", "W2", "W3", "W4"].map(|name| {
            let spec = spec(name).unwrap();
            (spec.tensors().len(), spec.bytes())
        });
        let expected =
            [(444, 1_493_277_696), (20_000, 81_920_000), (4, 2_147_483_648), (80, 1_937_911_808)];
        assert_eq!(sizes, expected);
    }

    #[test]
    fn an_unknown_name_lists_those_that_exist() {
        for bad in ["W5", "w1", "", "small-", "small--1", "small-1e3", "small-1000001"] {
            let error = spec(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
        }
        assert!(spec("W5").unwrap_err().to_string().contains("W1, W2, W3, W4, and small-N"));
        assert_eq!(spec("small-0").unwrap().bytes(), 0);
    }
}
