//! Whether ranks can meet: connections on this host, and the name of rank 0's.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};

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

fn master(host: String) -> Finding {
    const FIX: &str = "set MASTER_ADDR to a name that all hosts know, or to an address";
    let name = host.clone();
    let resolve =
        move || (name.as_str(), 0).to_socket_addrs().map(|found| found.collect::<Vec<_>>());
    match within(DEADLINE, resolve) {
        Some(Ok(addresses)) if !addresses.is_empty() => {
            let of = |address: &SocketAddr| address.ip().to_string();
            let shown: Vec<String> = addresses.iter().map(of).collect();
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
    let said = |what: String| format!("TCH_CHECKPOINT_IFADDR {address} {what}");
    match address.parse::<IpAddr>() {
        Err(_) => Finding::problem("ports", said("is no address".to_owned()), FIX),
        Ok(ip) => match TcpListener::bind((ip, 0)) {
            Ok(_) => Finding::ok("ports", said("is of this host".to_owned())),
            Err(e) => Finding::problem("ports", said(format!("cannot be used: {e}")), FIX),
        },
    }
}
