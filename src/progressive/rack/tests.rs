//! What a rack gives those who save it, and racks made of descriptions that nobody vouches for.

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, nn};

use super::*;
use crate::progressive::{Linear, LinearConfig, LoraConfig, RackBuilder, StackInfo};
use crate::torch::testing::generator;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Config {
    width: i64,
}

/// Linear blocks between embeddings and a head that is tied to them.
struct Tied;

struct Ends(Tensor);

impl Layer for Ends {
    fn forward(&self, input: &Tensor, _: bool) -> Tensor {
        input.linear(&self.0, None::<&Tensor>)
    }
}

impl Architecture for Tied {
    type Config = Config;

    fn embeddings(layers: &Layers<'_>, config: &Config) -> Result<Option<Box<dyn Layer>>> {
        let size = [config.width, config.width];
        Ok(Some(Box::new(Ends(layers.path().var("weight", &size, nn::Init::Const(1.0))))))
    }

    fn block(layers: &Layers<'_>, config: &Config) -> Result<Box<dyn Layer>> {
        let made: Linear =
            layers.linear("fc", config.width, config.width, LinearConfig::default())?;
        Ok(Box::new(made))
    }

    fn head(layers: &Layers<'_>, _: &Config) -> Result<Option<Box<dyn Layer>>> {
        Ok(Some(Box::new(Ends(layers.tie("weight", "embeddings.weight")?))))
    }
}

const CONFIG: Config = Config { width: 3 };

fn adapters() -> LoraConfig {
    LoraConfig { rank: 2, ..LoraConfig::default() }
}

/// Stacks 1 and 0, in this order, of which 0 has adapters.
fn rack() -> Rack<Tied> {
    let builder = RackBuilder::<Tied>::new(CONFIG).stack(1, Some(StackPrecision::Bf16));
    let mut rack = builder.build().unwrap();
    rack.prepend_stack(2, None).unwrap();
    rack.attach_adapters(1, &adapters()).unwrap();
    rack.set_frozen(1, true).unwrap();
    rack
}

/// A component with the names of its variables and its aliases.
type Listed = (String, Vec<String>, Vec<(String, String)>);

fn listed(rack: &Rack<Tied>) -> Vec<Listed> {
    let parts = rack.parts().unwrap().into_iter();
    let named = parts.map(|part| {
        let names = part.variables.into_iter().map(|(name, _)| name).collect();
        (part.component.as_str().to_owned(), names, part.aliases)
    });
    named.collect()
}

fn again(info: &RackInfo) -> Result<Rack<Tied>> {
    Rack::from_info(CONFIG, info, 0, Device::Cpu)
}

#[test]
fn parts_are_components_of_their_own_with_each_variable_once() {
    let _generator = generator();
    let listed = listed(&rack());
    let components: Vec<_> = listed.iter().map(|(component, ..)| component.as_str()).collect();
    assert_eq!(components, ["embeddings", "stack_1", "stack_0", "adapters_0", "head"]);
    let names = |index: usize| listed[index].1.clone();
    assert_eq!(names(0), ["embeddings.weight"]);
    assert_eq!(names(1).len(), 4);
    assert_eq!(names(2), ["stacks.0.blocks.0.fc.bias", "stacks.0.blocks.0.fc.weight"]);
    assert_eq!(names(3), ["stacks.0.blocks.0.fc.lora_A", "stacks.0.blocks.0.fc.lora_B"]);
    assert!(names(4).is_empty());
    let tie = ("head.weight".to_owned(), "embeddings.weight".to_owned());
    assert_eq!(listed[4].2, [tie]);
}

#[test]
fn a_part_has_the_weights_from_before_adapters_were_merged() {
    let _generator = generator();
    let mut rack = rack();
    let stored = |rack: &Rack<Tied>| -> Vec<f32> {
        let parts = rack.parts().unwrap();
        let part = parts.iter().find(|part| part.component.as_str() == "stack_0").unwrap();
        let weight = &part.variables[1].1;
        Vec::try_from(weight.detach().to_kind(Kind::Float).flatten(0, -1)).unwrap()
    };
    let b = variables::find(rack.store(), "stacks.0.blocks.0.fc.lora_B").unwrap();
    tch::no_grad(|| drop(b.shallow_clone().fill_(1.0)));
    let before = stored(&rack);
    rack.merge_adapters(1).unwrap();
    assert_eq!(stored(&rack), before);
    rack.detach_adapters(1).unwrap();
    assert_ne!(stored(&rack), before);
}

#[test]
fn a_rack_of_a_description_is_described_by_it() {
    let _generator = generator();
    let first = rack();
    let made = again(&first.info()).unwrap();
    assert_eq!(made.info(), first.info());
    assert_eq!(listed(&made), listed(&first));
    for (name, tensor) in first.store().variables() {
        let here = variables::find(made.store(), &name).unwrap();
        assert_eq!(here.requires_grad(), tensor.requires_grad(), "{name}");
        assert_eq!(here, tensor, "{name}");
    }
}

#[test]
fn descriptions_of_no_rack_are_corrupt_and_build_nothing() {
    let _generator = generator();
    let good = rack().info();
    type Change = fn(&mut RackInfo);
    let cases: [(&str, Change); 11] = [
        ("an identity twice", |info| info.stack_info[1].id = info.stack_info[0].id),
        ("an identity not given yet", |info| info.next_id = 1),
        ("another count", |info| info.current_stacks = 3),
        ("more than there may be", |info| info.max_stacks = 1),
        ("a maximum of none", |info| info.max_stacks = 0),
        ("a maximum out of bounds", |info| info.max_stacks = usize::MAX),
        ("no blocks", |info| info.stack_info[0].num_blocks = 0),
        ("blocks out of bounds", |info| info.stack_info[0].num_blocks = 5000),
        ("blocks of a machine's memory", |info| info.stack_info[0].num_blocks = usize::MAX),
        ("another place", |info| info.stack_info[0].stack_idx = 1),
        ("adapters of no rank", |info| {
            if let Some(adapters) = &mut info.stack_info[1].adapters {
                adapters.config.rank = 0;
            }
        }),
    ];
    for (what, change) in cases {
        let mut info = good.clone();
        change(&mut info);
        assert_ne!(info, good, "{what}");
        assert_eq!(again(&info).unwrap_err().kind(), ErrorKind::Corrupt, "{what}");
    }
}

#[test]
fn a_description_of_more_blocks_than_any_model_is_refused_before_they_are_made() {
    let _generator = generator();
    let mut info = rack().info();
    let mut stack = info.stack_info[0].clone();
    stack.num_blocks = 4096;
    info.stack_info = (0..4096)
        .map(|number| StackInfo {
            id: StackId::new(number),
            stack_idx: number as usize,
            ..stack.clone()
        })
        .collect();
    (info.current_stacks, info.max_stacks, info.next_id) = (4096, 4096, 4096);
    assert_eq!(again(&info).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_rack_that_has_given_every_identity_refuses_another_stack() {
    let _generator = generator();
    let mut rack = again(&RackInfo { next_id: u32::MAX, ..rack().info() }).unwrap();
    let info = rack.info();
    assert_eq!(rack.append_stack(1, None).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(rack.info(), info);
}

#[test]
fn an_architecture_with_other_ends_is_a_mismatch_that_names_both() {
    let _generator = generator();
    let mut info = rack().info();
    (info.has_embeddings, info.has_head) = (false, false);
    let error = again(&info).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.to_string().contains("embeddings") && error.to_string().contains("head"));
}
