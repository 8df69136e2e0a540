//! The metadata of the real thing, and what nobody's save writes.

mod hostile;
mod made;

use super::*;
use crate::tensor::Dtype;

const REAL: &[u8] = include_bytes!("../../../tests/fixtures/pickle/dcp_metadata.pkl");

#[test]
fn the_metadata_of_the_real_thing_is_understood() {
    let entries = parse(REAL).unwrap();
    assert_eq!(entries.len(), 8);
    let weight = entries.iter().find(|entry| entry.name == "model.0.weight").unwrap();
    assert_eq!(weight.path, ["model", "0.weight"].map(|text| Key::Text(text.to_owned())));
    let place = Place { file: "__0_0.distcp".to_owned(), begin: 1261, bytes: 1577 };
    let spec = TensorSpec::new(Dtype::F32, [3, 2]).unwrap();
    let whole = Slice::full(&[3, 2]);
    assert_eq!(weight.content, Content::Tensor(spec, vec![(whole, place)]));
    let step = entries.iter().find(|entry| entry.name == "step").unwrap();
    assert!(matches!(&step.content, Content::Bytes(place) if place.bytes == 1261));
}
