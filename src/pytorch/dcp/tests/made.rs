//! Metadata put together by hand, of which any part can be another.

use crate::pickle::Writer;

/// What a pickle may hold.
#[derive(Clone)]
pub(super) enum Thing {
    None,
    Int(i64),
    Text(String),
    Tuple(Vec<Thing>),
    List(Vec<Thing>),
    Dict(Vec<(Thing, Thing)>),
    Global(&'static str, &'static str),
    /// What a call with these gives.
    Call(&'static str, &'static str, Vec<Thing>),
    /// An object of a class, with its state.
    Object(&'static str, &'static str, Box<Thing>),
}

use Thing::{Dict, Global, Int, Object, Text, Tuple};

const METADATA: &str = "torch.distributed.checkpoint.metadata";

pub(super) fn text(text: &str) -> Thing {
    Text(text.to_owned())
}

pub(super) fn size(numbers: &[i64]) -> Thing {
    let numbers = numbers.iter().map(|number| Int(*number)).collect();
    Thing::Call("torch", "Size", vec![Tuple(numbers)])
}

pub(super) fn object(class: &'static str, fields: Vec<(&str, Thing)>) -> Thing {
    let module = match class {
        "_StorageInfo" => "torch.distributed.checkpoint.filesystem",
        _ => METADATA,
    };
    let fields = fields.into_iter().map(|(name, value)| (text(name), value)).collect();
    Object(class, module, Box::new(Dict(fields)))
}

/// A box of a tensor.
pub(super) fn chunk(offsets: &[i64], sizes: &[i64]) -> Thing {
    object("ChunkStorageMetadata", vec![("offsets", size(offsets)), ("sizes", size(sizes))])
}

/// What says which item is meant.
pub(super) fn index(name: &str, offset: Thing) -> Thing {
    object("MetadataIndex", vec![("fqn", text(name)), ("offset", offset), ("index", Int(0))])
}

/// Where an item is.
pub(super) fn info(file: &str, begin: i64, bytes: i64) -> Thing {
    let file = text(file);
    object(
        "_StorageInfo",
        vec![("relative_path", file), ("offset", Int(begin)), ("length", Int(bytes))],
    )
}

/// A tensor `w` of two rows of three, one row in each of two files, and a value `v`.
pub(super) fn good() -> Thing {
    let layout = Thing::Call("torch.serialization", "_get_layout", vec![text("torch.strided")]);
    let format = Thing::Call(METADATA, "_MEM_FORMAT_ENCODING", vec![Int(0)]);
    let properties = Tuple(vec![Global("torch", "float32"), layout, Int(0), format, Int(0)]);
    let tensor = object(
        "TensorStorageMetadata",
        vec![
            ("properties", Object("TensorProperties", METADATA, Box::new(properties))),
            ("size", size(&[2, 3])),
            ("chunks", Thing::List(vec![chunk(&[0, 0], &[1, 3]), chunk(&[1, 0], &[1, 3])])),
        ],
    );
    let value = object("BytesStorageMetadata", vec![]);
    object(
        "Metadata",
        vec![
            ("state_dict_metadata", Dict(vec![(text("w"), tensor), (text("v"), value)])),
            (
                "planner_data",
                Dict(vec![
                    (text("w"), Tuple(vec![text("model"), text("w")])),
                    (text("v"), Tuple(vec![text("v"), Int(0)])),
                ]),
            ),
            (
                "storage_data",
                Dict(vec![
                    (index("w", size(&[0, 0])), info("__0_0.distcp", 0, 100)),
                    (index("w", size(&[1, 0])), info("__1_0.distcp", 0, 100)),
                    (index("v", Thing::None), info("__0_0.distcp", 100, 50)),
                ]),
            ),
            ("storage_meta", Thing::None),
            ("version", text("1.0.0")),
        ],
    )
}

impl Thing {
    /// The part at this path: fields and entries by name, `keyN` for a key, `state` for that of an
    /// object, items by number.
    pub(super) fn at(&mut self, path: &str) -> &mut Thing {
        path.split('/').filter(|part| !part.is_empty()).fold(self, Self::part)
    }

    fn part(&mut self, part: &str) -> &mut Thing {
        let number = || part.parse::<usize>().unwrap();
        match self {
            Object(_, _, state) => match part {
                "state" => state,
                _ => state.part(part),
            },
            Thing::Call(_, _, arguments) => &mut arguments[0],
            Dict(entries) => match part.strip_prefix("key") {
                Some(number) => &mut entries[number.parse::<usize>().unwrap()].0,
                None => {
                    let is_it = |(key, _): &(Thing, Thing)| matches!(key, Text(t) if t == part);
                    let found = entries.iter().position(is_it);
                    &mut entries[found.unwrap_or_else(number)].1
                }
            },
            Thing::List(items) | Tuple(items) => &mut items[number()],
            _ => panic!("nothing at `{part}`"),
        }
    }

    pub(super) fn list(&mut self) -> &mut Vec<Thing> {
        let (Thing::List(items) | Tuple(items)) = self else { panic!("no list") };
        items
    }

    pub(super) fn dict(&mut self) -> &mut Vec<(Thing, Thing)> {
        match self {
            Object(_, _, state) => state.dict(),
            Dict(entries) => entries,
            _ => panic!("no dictionary"),
        }
    }

    pub(super) fn pickle(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        self.write(&mut writer);
        writer.finish()
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Self::None => writer.none(),
            Int(value) => writer.int(*value),
            Text(value) => writer.text(value).unwrap(),
            Global(module, name) => writer.global(module, name),
            Tuple(items) => {
                writer.mark();
                items.iter().for_each(|item| item.write(writer));
                writer.tuple();
            }
            Self::List(items) => {
                writer.empty_list();
                writer.mark();
                items.iter().for_each(|item| item.write(writer));
                writer.append();
            }
            Dict(entries) => {
                writer.empty_dict();
                writer.mark();
                for (key, value) in entries {
                    key.write(writer);
                    value.write(writer);
                }
                writer.set();
            }
            Self::Call(module, name, arguments) => {
                writer.global(module, name);
                Tuple(arguments.clone()).write(writer);
                writer.reduce();
            }
            Object(class, module, state) => {
                writer.global(module, class);
                writer.empty_tuple();
                writer.object();
                state.write(writer);
                writer.build();
            }
        }
    }
}
