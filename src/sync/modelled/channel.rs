//! Channels without a bound. The checker has none that several threads receive from, so they are
//! made of its locks.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_channel::{RecvError, SendError};

use super::lock::{Condvar, Mutex};
use super::{Flaw, chance, has, is_modelled};

pub(crate) enum Sender<T> {
    Plain(crossbeam_channel::Sender<T>),
    Modelled(Arc<Queue<T>>),
}

pub(crate) enum Receiver<T> {
    Plain(crossbeam_channel::Receiver<T>),
    Modelled(Arc<Queue<T>>),
}

pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    messages: VecDeque<T>,
    is_sent_to: bool,
    is_received_from: bool,
}

/// Each end has one owner, who may lend it to several threads.
pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    if !is_modelled() {
        let (sender, receiver) = crossbeam_channel::unbounded();
        return (Sender::Plain(sender), Receiver::Plain(receiver));
    }
    let state = State { messages: VecDeque::new(), is_sent_to: true, is_received_from: true };
    let queue = Arc::new(Queue { state: Mutex::new(state), changed: Condvar::default() });
    (Sender::Modelled(Arc::clone(&queue)), Receiver::Modelled(queue))
}

impl<T> Sender<T> {
    pub(crate) fn send(&self, message: T) -> Result<(), SendError<T>> {
        let queue = match self {
            Self::Plain(sender) => return sender.send(message),
            Self::Modelled(queue) => queue,
        };
        let mut state = queue.state.lock();
        if !state.is_received_from {
            return Err(SendError(message));
        }
        if !(has(Flaw::LostMessage) && chance(8)) {
            state.messages.push_back(message);
        }
        drop(state);
        queue.changed.notify_all();
        Ok(())
    }
}

impl<T> Receiver<T> {
    pub(crate) fn recv(&self) -> Result<T, RecvError> {
        let queue = match self {
            Self::Plain(receiver) => return receiver.recv(),
            Self::Modelled(queue) => queue,
        };
        let mut state = queue.state.lock();
        loop {
            if let Some(message) = state.messages.pop_front() {
                return Ok(message);
            }
            if !state.is_sent_to {
                return Err(RecvError);
            }
            queue.changed.wait(&mut state);
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if let Self::Modelled(queue) = self
            && !has(Flaw::LostEnd)
        {
            queue.state.lock().is_sent_to = false;
            queue.changed.notify_all();
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        if let Self::Modelled(queue) = self {
            let mut state = queue.state.lock();
            state.is_received_from = false;
            let left = std::mem::take(&mut state.messages);
            drop(state);
            drop(left);
        }
    }
}
