//! Pickles of protocol 2, which is what PyTorch's own restricted reader takes.

use super::opcode as op;
use crate::error::{Error, ErrorKind, Result};

/// Writes a pickle instruction by instruction.
pub(crate) struct Writer {
    out: Vec<u8>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { out: vec![op::PROTO, 2] }
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.out.push(op::STOP);
        self.out
    }

    pub(crate) fn none(&mut self) {
        self.out.push(op::NONE);
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.out.push(if value { op::NEWTRUE } else { op::NEWFALSE });
    }

    pub(crate) fn int(&mut self, value: i64) {
        if let Ok(byte) = u8::try_from(value) {
            self.out.extend([op::BININT1, byte]);
        } else if let Ok(short) = u16::try_from(value) {
            self.put(op::BININT2, &short.to_le_bytes());
        } else if let Ok(int) = i32::try_from(value) {
            self.put(op::BININT, &int.to_le_bytes());
        } else {
            self.out.extend([op::LONG1, 8]);
            self.out.extend(value.to_le_bytes());
        }
    }

    /// # Errors
    /// [`ErrorKind::Unsupported`] beyond 63 bits, which no tensor has.
    pub(crate) fn count(&mut self, value: u64) -> Result<()> {
        let value = i64::try_from(value)
            .map_err(|_| Error::new(ErrorKind::Unsupported, format!("a count of {value}")))?;
        self.int(value);
        Ok(())
    }

    pub(crate) fn float(&mut self, value: f64) {
        self.put(op::BINFLOAT, &value.to_be_bytes());
    }

    /// # Errors
    /// [`ErrorKind::Unsupported`] for 4 GiB and more.
    pub(crate) fn text(&mut self, value: &str) -> Result<()> {
        let too_long = |_| Error::new(ErrorKind::Unsupported, "a text of 4 GiB or more");
        let len = u32::try_from(value.len()).map_err(too_long)?;
        self.put(op::BINUNICODE, &len.to_le_bytes());
        self.out.extend(value.as_bytes());
        Ok(())
    }

    /// Protocol 2 has no bytes: a text whose characters are them, and a call that encodes it.
    ///
    /// # Errors
    /// As [`Writer::text`].
    pub(crate) fn bytes(&mut self, value: &[u8]) -> Result<()> {
        let text: String = value.iter().map(|byte| char::from(*byte)).collect();
        self.global("_codecs", "encode");
        self.text(&text)?;
        self.text("latin1")?;
        self.out.extend([op::TUPLE2, op::REDUCE]);
        Ok(())
    }

    /// A name that is imported; neither part holds the end of a line.
    pub(crate) fn global(&mut self, module: &str, name: &str) {
        self.out.push(op::GLOBAL);
        self.out.extend(format!("{module}\n{name}\n").as_bytes());
    }

    /// Begins what [`Writer::tuple`], [`Writer::append`] or [`Writer::set`] end.
    pub(crate) fn mark(&mut self) {
        self.out.push(op::MARK);
    }

    /// All since the mark as a tuple.
    pub(crate) fn tuple(&mut self) {
        self.out.push(op::TUPLE);
    }

    pub(crate) fn empty_tuple(&mut self) {
        self.out.push(op::EMPTY_TUPLE);
    }

    pub(crate) fn empty_list(&mut self) {
        self.out.push(op::EMPTY_LIST);
    }

    pub(crate) fn empty_dict(&mut self) {
        self.out.push(op::EMPTY_DICT);
    }

    /// All since the mark into the list before it.
    pub(crate) fn append(&mut self) {
        self.out.push(op::APPENDS);
    }

    /// All since the mark, keys and values in turn, into the dictionary before it.
    pub(crate) fn set(&mut self) {
        self.out.push(op::SETITEMS);
    }

    /// Calls what lies below with the tuple on top.
    pub(crate) fn reduce(&mut self) {
        self.out.push(op::REDUCE);
    }

    /// Makes an object of the class below, with the tuple on top as arguments.
    pub(crate) fn object(&mut self) {
        self.out.push(op::NEWOBJ);
    }

    /// Gives the object below the state on top.
    pub(crate) fn build(&mut self) {
        self.out.push(op::BUILD);
    }

    /// What is on top becomes what the reader asks its caller for.
    pub(crate) fn persistent(&mut self) {
        self.out.push(op::BINPERSID);
    }

    fn put(&mut self, code: u8, bytes: &[u8]) {
        self.out.push(code);
        self.out.extend(bytes);
    }
}
