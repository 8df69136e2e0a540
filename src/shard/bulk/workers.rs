//! A few threads that take jobs in order.

use std::num::NonZero;
use std::thread;

use crossbeam_channel::{Receiver, bounded, unbounded};

use crate::clock;

/// Below this, starting threads takes longer than they save.
const ALONE_BYTES: u64 = 1 << 20;
/// The device and the memory are at their limits with fewer than this.
const THREADS_MAX: usize = 4;
/// Even on one core one thread can wait for the device while another one checks.
const THREADS_MIN: usize = 2;
/// Batches per thread, so that all end at about the same time.
const BATCHES: u64 = 4;
const BATCH_BYTES_MIN: u64 = 1 << 20;
const BATCH_BYTES_MAX: u64 = 8 << 20;
/// Most messages that wait for the calling thread.
const MESSAGES: usize = 4;

/// How so many bytes are read.
#[derive(Debug, Clone, Copy)]
pub(in crate::shard) struct Pace {
    /// Threads beside the calling one; 0: that one does everything.
    pub(in crate::shard) threads: usize,
    /// Most bytes of a batch.
    pub(in crate::shard) limit: u64,
}

impl Pace {
    pub(in crate::shard) fn of(bytes: u64) -> Self {
        // Threads would escape a simulation.
        let threads = match clock::is_simulated() || bytes < ALONE_BYTES {
            true => 0,
            false => thread::available_parallelism()
                .map_or(THREADS_MIN, NonZero::get)
                .clamp(THREADS_MIN, THREADS_MAX),
        };
        let share = bytes / (threads.max(1) as u64 * BATCHES);
        Self { threads, limit: share.clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX) }
    }
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard) enum Message {
    /// It is on its way, or was handled.
    Taken,
    /// The calling thread is gone.
    NobodyListens,
}

/// What a thread does with a job: with state of its own, and a way to the calling thread.
type Work<'w, W, J, M> = &'w (dyn Fn(&mut W, J, &mut dyn FnMut(M) -> Message) + Sync);

/// Does all `jobs` on so many threads, which take them in order, and handles on the calling thread
/// what they send. A panic of a thread goes on in the calling one.
pub(in crate::shard) fn run<W, J: Send, M: Send>(
    jobs: Vec<J>,
    threads: usize,
    start: &(dyn Fn() -> W + Sync),
    work: Work<'_, W, J, M>,
    on_message: &mut dyn FnMut(M),
) {
    let (give, todo) = unbounded();
    // Never refused: `todo` is there.
    jobs.into_iter().for_each(|job| drop(give.send(job)));
    drop(give);
    let threads = threads.min(todo.len());
    let all_here = |todo: &Receiver<J>, on_message: &mut dyn FnMut(M)| {
        let mut state = start();
        let mut hand = |message| {
            on_message(message);
            Message::Taken
        };
        todo.iter().for_each(|job| work(&mut state, job, &mut hand));
    };
    if threads == 0 {
        return all_here(&todo, on_message);
    }
    thread::scope(|scope| {
        let (hand, messages) = bounded(MESSAGES);
        let spawn = |_| {
            let (todo, hand) = (todo.clone(), hand.clone());
            let body = move || {
                let mut state = start();
                let mut hand = |message| match hand.send(message) {
                    Ok(()) => Message::Taken,
                    Err(_) => Message::NobodyListens,
                };
                todo.iter().for_each(|job| work(&mut state, job, &mut hand));
            };
            thread::Builder::new().name("shard-reader".to_owned()).spawn_scoped(scope, body).ok()
        };
        let running: Vec<_> = (0..threads).map_while(spawn).collect();
        drop(hand);
        messages.iter().for_each(&mut *on_message);
        // Where no thread could be started, nothing is done yet.
        all_here(&todo, on_message);
        for thread in running {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}
