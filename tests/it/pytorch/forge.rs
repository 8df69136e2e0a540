//! Archives and pickles put together by hand, so that any part of them can lie.

/// An archive, and where its parts are.
#[derive(Clone)]
pub struct Forged {
    pub bytes: Vec<u8>,
    /// Where each member begins, and where its entry in the table does.
    pub members: Vec<(usize, usize)>,
    pub table: usize,
    pub end: usize,
}

impl Forged {
    pub fn new(members: &[(&str, &[u8])]) -> Self {
        let (mut bytes, mut table, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (name, data) in members {
            places.push((bytes.len(), table.len()));
            let described = described(name, data);
            let local = [b"PK\x03\x04\x14\0", &described[..], name.as_bytes(), data].concat();
            let begin = u32::try_from(bytes.len()).unwrap();
            table.extend(b"PK\x01\x02\x14\0\x14\0");
            table.extend(&described);
            table.extend([0; 10]);
            table.extend(begin.to_le_bytes());
            table.extend(name.as_bytes());
            bytes.extend(local);
        }
        let (begin, len) = (bytes.len(), u32::try_from(table.len()).unwrap());
        let members: Vec<(usize, usize)> =
            places.into_iter().map(|(local, entry)| (local, begin + entry)).collect();
        bytes.extend(table);
        let end = bytes.len();
        let count = u16::try_from(members.len()).unwrap().to_le_bytes();
        bytes.extend(b"PK\x05\x06\0\0\0\0");
        bytes.extend([count, count].concat());
        bytes.extend(len.to_le_bytes());
        bytes.extend(u32::try_from(begin).unwrap().to_le_bytes());
        bytes.extend([0, 0]);
        Self { bytes, members, table: begin, end }
    }

    /// With the records of large archives before the end, which say the same.
    pub fn large(mut self) -> Self {
        let len = (self.end - self.table) as u64;
        let count = self.members.len() as u64;
        let mut end = b"PK\x06\x06".to_vec();
        end.extend(44u64.to_le_bytes());
        end.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for number in [count, count, len, self.table as u64] {
            end.extend(number.to_le_bytes());
        }
        end.extend(b"PK\x06\x07\0\0\0\0");
        end.extend((self.end as u64).to_le_bytes());
        end.extend(1u32.to_le_bytes());
        self.bytes.splice(self.end..self.end, end);
        self
    }

    /// With other bytes at a place.
    pub fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// With other bytes so far into the entry of a member.
    pub fn entry(self, member: usize, at: usize, bytes: &[u8]) -> Self {
        let entry = self.members[member].1;
        self.with(entry + at, bytes)
    }

    /// With other bytes so far into what stands before a member.
    pub fn local(self, member: usize, at: usize, bytes: &[u8]) -> Self {
        let local = self.members[member].0;
        self.with(local + at, bytes)
    }
}

/// What entry and member both say, from the flags on.
fn described(name: &str, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap().to_le_bytes();
    let mut out = vec![0; 8];
    out.extend(crc32(data).to_le_bytes());
    out.extend([len, len].concat());
    out.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
    out.extend([0, 0]);
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
    let byte = |sum: u32, byte: &u8| (0..8).fold(sum ^ u32::from(*byte), |sum, _| step(sum));
    !bytes.iter().fold(!0, byte)
}

/// A tensor as a pickle describes it; all of it can lie.
pub struct Tensor<'a> {
    pub class: &'a str,
    pub key: &'a str,
    pub count: i64,
    pub first: i64,
    pub shape: &'a [i64],
    pub strides: &'a [i64],
    /// What is to be done with the elements.
    pub mark: Option<&'a str>,
}

/// Three rows of two.
pub const GOOD: Tensor<'_> = Tensor {
    class: "FloatStorage",
    key: "0",
    count: 6,
    first: 0,
    shape: &[3, 2],
    strides: &[2, 1],
    mark: None,
};

impl Tensor<'_> {
    pub fn pickle(&self) -> Vec<u8> {
        let mut out = b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
        out.extend(text("storage"));
        out.extend(format!("ctorch\n{}\n", self.class).into_bytes());
        out.extend([text(self.key), text("cpu"), int(self.count), b"tQ".to_vec()].concat());
        out.extend(int(self.first));
        for numbers in [self.shape, self.strides] {
            out.push(b'(');
            out.extend(numbers.iter().flat_map(|number| int(*number)));
            out.push(b't');
        }
        out.extend(b"\x89ccollections\nOrderedDict\n)R");
        if let Some(mark) = self.mark {
            out.extend([b"}".to_vec(), text(mark), b"\x88s".to_vec()].concat());
        }
        out.extend(b"tR");
        out
    }
}

pub fn text(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).unwrap().to_le_bytes();
    [b"X", &len[..], text.as_bytes()].concat()
}

pub fn int(number: i64) -> Vec<u8> {
    [b"\x8a\x08", &number.to_le_bytes()[..]].concat()
}

/// A pickle of a dictionary.
pub fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let entries = entries.iter().flat_map(|(name, value)| [text(name), value.clone()].concat());
    [b"\x80\x02}(".to_vec(), entries.collect(), b"u.".to_vec()].concat()
}

/// The six floats of the storage.
pub fn data() -> Vec<u8> {
    (1..=6u8).flat_map(|number| f32::from(number).to_le_bytes()).collect()
}

/// An archive of this pickle and the storage.
pub fn archive(pickle: &[u8]) -> Forged {
    let order: &[u8] = b"little";
    let data = data();
    Forged::new(&[("a/data.pkl", pickle), ("a/byteorder", order), ("a/data/0", &data)])
}

/// An archive of a single tensor.
pub fn archive_of(tensor: &Tensor<'_>) -> Forged {
    archive(&dict(&[("w", tensor.pickle())]))
}
