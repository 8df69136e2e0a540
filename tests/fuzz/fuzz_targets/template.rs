//! Templates of names, with any values: what is accepted gives a name, whatever the values are.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use tch_checkpoint::autosave::{KnownFields, NameTemplate, Number};
use tch_checkpoint::layout::CheckpointName;
use tch_checkpoint_fuzz::Input;

const ALLOWED: &[u8] = b"._-+=,%@~(){} ";

fuzz_target!(|data: &[u8]| {
    let (values, text) = data.split_at(data.len().min(27));
    let Ok(text) = std::str::from_utf8(text) else { return };
    let known = KnownFields::new(["acc", "mAP@0.5", "top/5"]);
    let Ok(template) = NameTemplate::parse(text, &known) else { return };
    assert_eq!(NameTemplate::parse(&template.to_string(), &known).ok().as_ref(), Some(&template));
    let mut input = Input(values);
    let epoch = input.number(1);
    let value = |name: &str, number| (name.to_owned(), number);
    let mut values = BTreeMap::from([
        value("loss", float(&mut input)),
        value("acc", float(&mut input)),
        value("step", Number::Int(input.number(0) as i64)),
    ]);
    if input.byte() > 128 {
        values.clear();
    }
    let rendered = template.render(epoch, &values);
    let name = &rendered.name;
    CheckpointName::new(name).unwrap_or_else(|e| panic!("`{name}`: {e}"));
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || ALLOWED.contains(&byte);
    assert!(name.len() <= 200 && name.bytes().all(is_allowed), "`{name}`");
    assert!(name.trim() == name, "`{name}`");
});

fn float(input: &mut Input<'_>) -> Number {
    let bytes = input.take(8);
    let bits = bytes.iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    Number::Float(f64::from_bits(bits))
}
