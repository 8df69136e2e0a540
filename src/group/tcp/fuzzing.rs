//! The first words of a stranger.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

pub use super::guest::fuzz_guest as guest;
use super::handshake::{Hello, Reply, receive, send};

/// What rank 0 reads of whoever knocks.
pub fn hello(bytes: &[u8]) {
    if let Some(hello) = Hello::parse(bytes) {
        assert_eq!(hello.to_bytes(), bytes);
    }
}

/// What a rank reads of whoever listens where rank 0 should.
pub fn reply(bytes: &[u8]) {
    if let Some(reply) = Reply::parse(bytes) {
        // A text that is too long to be sent is shortened.
        let printed = reply.to_bytes();
        let again = Reply::parse(&printed).expect("what was written is read");
        assert_eq!(again.to_bytes(), printed);
    }
}

/// A whole connection that says these bytes and then nothing more.
pub fn connection(bytes: &[u8]) {
    let (ours, theirs) = spoken(bytes);
    let until = Instant::now() + Duration::from_secs(60);
    let Ok(body) = receive(&ours, until) else { return };
    hello(&body);
    reply(&body);
    send(&ours, &body).expect("what was received is sent");
    theirs.set_nonblocking(false).expect("a socket");
    assert_eq!(receive(&theirs, until).ok(), Some(body));
}

/// A connection on which the other side has said `bytes` and will say no more. What is done to its
/// two ends knows no difference from one over the network.
pub(super) fn spoken(bytes: &[u8]) -> (TcpStream, TcpStream) {
    let made = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = made.expect("sockets");
    let (ours, theirs) = (TcpStream::from(ours), TcpStream::from(theirs));
    // More than fits stays unsaid.
    theirs.set_nonblocking(true).expect("a socket");
    drop((&theirs).write(bytes));
    drop(theirs.shutdown(Shutdown::Write));
    (ours, theirs)
}
