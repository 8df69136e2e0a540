//! Whether ranks can meet: connections on this host, and the name of rank 0's.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};

use super::Finding;
use crate::cli::bounded::{DEADLINE, within};

pub(super) fn ports() -> Vec<Finding> {
    let mut found = vec![match within(DEADLINE, talk_to_ourselves) {
        Some(Ok(())) => Finding::ok("ports", "processes of this host can meet on 127.0.0.1"),
        Some(Err(error)) => Finding::problem(
            "ports",
            format!("no connection on 127.0.0.1: {error}"),
            "bring the loopback interface up (ip link set lo up), or look at the firewall",
        ),
        None => Finding::problem(
            "ports",
            "a connection on 127.0.0.1 is neither made nor refused",
            "a firewall drops it: let connections of this host to itself pass",
        ),
    }];
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    found.extend(variable("MASTER_ADDR").map(master));
    found.extend(variable("TCH_CHECKPOINT_IFADDR").map(interface));
    found
}

fn talk_to_ourselves() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect_timeout(&listener.local_addr()?, DEADLINE)?;
    let (mut far, _) = listener.accept()?;
    near.write_all(b"!")?;
    far.set_read_timeout(Some(DEADLINE))?;
    far.read_exact(&mut [0])
}

/// As ranks take it: a name or an address, of IPv6 with brackets or without.
fn addresses(host: &str) -> io::Result<Vec<SocketAddr>> {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    Ok((inner.unwrap_or(host), 0).to_socket_addrs()?.collect())
}

fn master(host: String) -> Finding {
    const FIX: &str = "set MASTER_ADDR to a name that all hosts know, or to an address";
    let name = host.clone();
    match within(DEADLINE, move || addresses(&name)) {
        Some(Ok(addresses)) if !addresses.is_empty() => {
            let of = |address: &SocketAddr| address.ip().to_string();
            let mut shown: Vec<String> = addresses.iter().map(of).collect();
            shown.dedup();
            Finding::ok("ports", format!("MASTER_ADDR {host} is {}", shown.join(", ")))
        }
        Some(Ok(_)) => Finding::problem("ports", format!("MASTER_ADDR {host} has no address"), FIX),
        Some(Err(e)) => {
            Finding::problem("ports", format!("MASTER_ADDR {host} is not known: {e}"), FIX)
        }
        None => Finding::problem("ports", format!("MASTER_ADDR {host}: nobody answers"), FIX),
    }
}

fn interface(address: String) -> Finding {
    const FIX: &str = "set it to an address of this host, or unset it";
    let said = |what: &str| format!("TCH_CHECKPOINT_IFADDR {address} {what}");
    let name = address.clone();
    match within(DEADLINE, move || TcpListener::bind(&addresses(&name)?[..])) {
        Some(Ok(_)) => Finding::ok("ports", said("is of this host")),
        Some(Err(e)) => Finding::problem("ports", said(&format!("cannot be used: {e}")), FIX),
        None => Finding::problem("ports", said("is a name for which nobody answers"), FIX),
    }
}
