//! The machine: a stack, marks on it, and a memo.

use super::long::long;
use super::memo::Memo;
use super::opcode as op;
use super::{Call, Id, NODES_MAX, Node, Pickle};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::room_for;
use crate::shown::short;

/// Bytes of a pickle for each thing that it makes, about.
const NODE_BYTES: usize = 16;

/// Runs the program at the front of `bytes` to its end.
pub(super) fn run(bytes: &[u8], may: &dyn Fn(&str, &str) -> bool) -> Result<(Pickle, usize)> {
    let mut machine = Machine {
        bytes,
        at: 0,
        may,
        // Most instructions that make something have some operands.
        nodes: room_for((bytes.len() / NODE_BYTES).min(NODES_MAX))?,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Memo::default(),
    };
    loop {
        let begin = machine.at;
        let located = |e: Error| e.with_offset(begin as u64);
        let code = machine.byte().map_err(located)?;
        if code == op::STOP {
            let root = machine.pop().map_err(located)?;
            return Ok((Pickle { nodes: machine.nodes, root, bytes: machine.at }, machine.at));
        }
        machine.step(code).map_err(located)?;
    }
}

struct Machine<'b> {
    bytes: &'b [u8],
    at: usize,
    may: &'b dyn Fn(&str, &str) -> bool,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: Memo,
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a malformed pickle: {what}"))
}

impl<'b> Machine<'b> {
    fn step(&mut self, code: u8) -> Result<()> {
        match code {
            op::PROTO => self.protocol(),
            op::FRAME => self.take(8).map(drop),
            op::NONE => self.push(Node::None),
            op::NEWTRUE => self.push(Node::Bool(true)),
            op::NEWFALSE => self.push(Node::Bool(false)),
            op::BININT | op::BININT1 | op::BININT2 | op::LONG1 | op::LONG4 => self.integer(code),
            op::INT | op::LONG => self.integer_text(),
            op::BINFLOAT => {
                let bits = self.array::<8>()?;
                self.push(Node::Float(f64::from_be_bytes(bits)))
            }
            op::FLOAT => {
                let number = self.line()?.parse().map_err(|_| corrupt("no number"))?;
                self.push(Node::Float(number))
            }
            op::BINUNICODE
            | op::SHORT_BINUNICODE
            | op::BINUNICODE8
            | op::UNICODE
            | op::BINSTRING
            | op::SHORT_BINSTRING => self.text(code),
            op::BINBYTES | op::SHORT_BINBYTES | op::BINBYTES8 | op::BYTEARRAY8 => {
                let bytes = self.counted(code)?.to_vec();
                self.push(Node::Bytes(bytes))
            }
            op::POP | op::POP_MARK | op::DUP | op::MARK => self.arrange(code),
            op::GET | op::BINGET | op::LONG_BINGET => self.recall(code),
            op::PUT | op::BINPUT | op::LONG_BINPUT | op::MEMOIZE => self.memorize(code),
            op::GLOBAL | op::STACK_GLOBAL => self.global(code),
            op::REDUCE | op::NEWOBJ => self.call(),
            op::BUILD => self.build(),
            op::BINPERSID => {
                let id = self.pop()?;
                self.push(Node::Persistent(id))
            }
            _ => self.collection(code),
        }
    }

    fn collection(&mut self, code: u8) -> Result<()> {
        match code {
            op::EMPTY_LIST => self.push(Node::List(Vec::new())),
            op::EMPTY_TUPLE => self.push(Node::Tuple(Vec::new())),
            op::EMPTY_DICT => self.push(Node::Dict(Vec::new())),
            op::EMPTY_SET => self.push(Node::Set(Vec::new())),
            op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => {
                let items = self.last(usize::from(code - op::TUPLE1) + 1)?;
                self.push(Node::Tuple(items))
            }
            op::TUPLE => {
                let items = self.since_mark()?;
                self.push(Node::Tuple(items))
            }
            op::LIST => {
                let items = self.since_mark()?;
                self.push(Node::List(items))
            }
            op::FROZENSET => {
                let items = self.since_mark()?;
                self.push(Node::Set(items))
            }
            op::DICT => {
                let entries = pairs(self.since_mark()?)?;
                self.push(Node::Dict(entries))
            }
            op::APPEND => {
                let items = self.last(1)?;
                self.extend(items)
            }
            op::APPENDS | op::ADDITEMS => {
                let items = self.since_mark()?;
                self.extend(items)
            }
            op::SETITEM => {
                let entries = pairs(self.last(2)?)?;
                self.set(entries)
            }
            op::SETITEMS => {
                let entries = pairs(self.since_mark()?)?;
                self.set(entries)
            }
            _ => Err(Error::new(
                ErrorKind::Incompatible,
                format!("a pickle with instruction 0x{code:02x}, which nothing here needs"),
            )),
        }
    }

    fn protocol(&mut self) -> Result<()> {
        let version = self.byte()?;
        if version <= op::PROTOCOL_MAX {
            return Ok(());
        }
        let message =
            format!("a pickle of protocol {version}, known are 0 to {}", op::PROTOCOL_MAX);
        Err(Error::new(ErrorKind::Incompatible, message))
    }

    fn integer(&mut self, code: u8) -> Result<()> {
        let number = match code {
            op::BININT => i64::from(i32::from_le_bytes(self.array()?)),
            op::BININT1 => i64::from(self.byte()?),
            op::BININT2 => i64::from(u16::from_le_bytes(self.array()?)),
            _ => {
                let len = match code {
                    op::LONG1 => usize::from(self.byte()?),
                    _ => length(u64::from(u32::from_le_bytes(self.array()?)))?,
                };
                let bytes = self.take(len)?;
                return self.push(long(bytes).map_or(Node::Huge, Node::Int));
            }
        };
        self.push(Node::Int(number))
    }

    /// `01` and `00` are what protocol 0 makes of booleans.
    fn integer_text(&mut self) -> Result<()> {
        let line = self.line()?;
        let node = match line {
            "01" => Node::Bool(true),
            "00" => Node::Bool(false),
            _ => {
                let digits = line.strip_suffix('L').unwrap_or(line);
                let is_number = digits.strip_prefix('-').unwrap_or(digits);
                if is_number.is_empty() || !is_number.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(corrupt("no integer"));
                }
                digits.parse().map_or(Node::Huge, Node::Int)
            }
        };
        self.push(node)
    }

    fn text(&mut self, code: u8) -> Result<()> {
        let text = match code {
            op::UNICODE => self.line()?,
            _ => std::str::from_utf8(self.counted(code)?).map_err(|_| corrupt("no UTF-8"))?,
        };
        let text = text.to_owned();
        self.push(Node::Text(text))
    }

    fn arrange(&mut self, code: u8) -> Result<()> {
        match code {
            op::MARK => self.marks.push(self.stack.len()),
            op::POP_MARK => drop(self.since_mark()?),
            op::DUP => {
                let top = self.top()?;
                self.stack.push(top);
            }
            // Of a mark that lies on top, the mark.
            _ if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            _ => drop(self.pop()?),
        }
        Ok(())
    }

    fn place(&mut self, code: u8) -> Result<u64> {
        Ok(match code {
            op::GET | op::PUT => {
                self.line()?.parse().map_err(|_| corrupt("no place in the memo"))?
            }
            op::BINGET | op::BINPUT => u64::from(self.byte()?),
            op::MEMOIZE => self.memo.count(),
            _ => u64::from(u32::from_le_bytes(self.array()?)),
        })
    }

    fn recall(&mut self, code: u8) -> Result<()> {
        let place = self.place(code)?;
        let id = self.memo.get(place).ok_or_else(|| corrupt("nothing there in the memo"))?;
        self.stack.push(id);
        Ok(())
    }

    fn memorize(&mut self, code: u8) -> Result<()> {
        let (place, id) = (self.place(code)?, self.top()?);
        self.memo.insert(place, id);
        Ok(())
    }

    fn global(&mut self, code: u8) -> Result<()> {
        let (module, name) = if code == op::GLOBAL {
            (self.line()?.to_owned(), self.line()?.to_owned())
        } else {
            let [module, name] = self.pair()?;
            let text = |id: Id| match self.nodes.get(id as usize) {
                Some(Node::Text(text)) => Ok(text.clone()),
                _ => Err(corrupt("a name that is no text")),
            };
            (text(module)?, text(name)?)
        };
        if (self.may)(&module, &name) {
            return self.push(Node::Global(module, name));
        }
        let message = format!("it would call `{}.{}`", short(&module), short(&name));
        Err(Error::new(ErrorKind::Incompatible, message).with_help(
            "nothing in it was executed; only tensors, plain values, and dictionaries and lists of \
             them are read",
        ))
    }

    fn call(&mut self) -> Result<()> {
        let [callable, arguments] = self.pair()?;
        let is_global = matches!(self.nodes.get(callable as usize), Some(Node::Global(..)));
        let is_tuple = matches!(self.nodes.get(arguments as usize), Some(Node::Tuple(_)));
        if !is_global || !is_tuple {
            return Err(corrupt("a call of what cannot be called"));
        }
        let (items, entries) = (Vec::new(), Vec::new());
        self.push(Node::Made(Box::new(Call { callable, arguments, state: None, items, entries })))
    }

    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        match self.top_node()? {
            Node::Made(call) if call.state.is_none() => {
                call.state = Some(state);
                Ok(())
            }
            _ => Err(corrupt("a state for what can have none")),
        }
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<()> {
        match self.top_node()? {
            Node::List(all) | Node::Set(all) => all.extend(items),
            Node::Made(call) => call.items.extend(items),
            _ => return Err(corrupt("items for what is no list")),
        }
        Ok(())
    }

    fn set(&mut self, entries: Vec<(Id, Id)>) -> Result<()> {
        match self.top_node()? {
            Node::Dict(all) => all.extend(entries),
            Node::Made(call) => call.entries.extend(entries),
            _ => return Err(corrupt("entries for what is no dictionary")),
        }
        Ok(())
    }

    fn push(&mut self, node: Node) -> Result<()> {
        if self.nodes.len() >= NODES_MAX {
            let message = format!("a pickle of more than {NODES_MAX} things");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let id = Id::try_from(self.nodes.len()).unwrap_or(Id::MAX);
        self.nodes.push(node);
        self.stack.push(id);
        Ok(())
    }

    /// How far the stack may be taken down.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn top(&self) -> Result<Id> {
        let top = self.stack.last().filter(|_| self.stack.len() > self.floor());
        top.copied().ok_or_else(|| corrupt("the stack is empty"))
    }

    fn top_node(&mut self) -> Result<&mut Node> {
        let top = self.top()?;
        self.nodes.get_mut(top as usize).ok_or_else(|| corrupt("the stack is empty"))
    }

    /// The two on top.
    fn pair(&mut self) -> Result<[Id; 2]> {
        let above = self.pop()?;
        Ok([self.pop()?, above])
    }

    fn last(&mut self, count: usize) -> Result<Vec<Id>> {
        let begin = self.stack.len().checked_sub(count).filter(|begin| *begin >= self.floor());
        let begin = begin.ok_or_else(|| corrupt("the stack is empty"))?;
        Ok(self.stack.split_off(begin))
    }

    fn since_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| corrupt("no mark"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| corrupt("it ends too early"))
    }

    fn take(&mut self, len: usize) -> Result<&'b [u8]> {
        let end = self.at.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| corrupt("it ends too early"))?;
        self.at += len;
        Ok(taken)
    }

    /// What follows its own length.
    fn counted(&mut self, code: u8) -> Result<&'b [u8]> {
        let len = match code {
            op::SHORT_BINUNICODE | op::SHORT_BINBYTES | op::SHORT_BINSTRING => {
                u64::from(self.byte()?)
            }
            op::BINUNICODE8 | op::BINBYTES8 | op::BYTEARRAY8 => u64::from_le_bytes(self.array()?),
            _ => u64::from(u32::from_le_bytes(self.array()?)),
        };
        self.take(length(len)?)
    }

    /// Up to the end of the line.
    fn line(&mut self) -> Result<&'b str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|b| *b == b'\n').ok_or_else(|| corrupt("an open line"))?;
        let line = self.take(len + 1)?.get(..len).unwrap_or_default();
        std::str::from_utf8(line).map_err(|_| corrupt("no UTF-8"))
    }
}

fn length(len: u64) -> Result<usize> {
    usize::try_from(len).map_err(|_| corrupt("it ends too early"))
}

fn pairs(ids: Vec<Id>) -> Result<Vec<(Id, Id)>> {
    let (pairs, rest) = ids.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(corrupt("a key without a value"));
    }
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}
