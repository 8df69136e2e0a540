use std::net::TcpListener;

use super::*;

/// A frame that this rank cannot take, for what is in it or for want of memory, ends the
/// connection: the peer would wait for the answer until its deadline.
#[test]
fn a_frame_that_cannot_be_taken_closes_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    let peer = Rank::new(1);
    let inbox = Inbox::new(std::iter::once(peer));
    let _link = link(peer, ours, &inbox, &Deadlines::default()).unwrap();

    // No kind of frame; everything in it is read.
    theirs.write_all(&[0xff; 2]).unwrap();
    theirs.write_all(&[0; 18]).unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "the connection is still open");
}
