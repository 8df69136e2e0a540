//! Where rank 0 can be reached.

use std::net::{IpAddr, UdpSocket};

use serde::{Deserialize, Serialize};

use crate::group::tcp::Meeting;

/// What rank 0 tells the others by MPI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// `host:port`, the likeliest first.
    addresses: Vec<String>,
    token: String,
}

impl Place {
    pub(super) fn new(hosts: &[String], port: u16, token: String) -> Self {
        Self { addresses: hosts.iter().map(|host| with_port(host, port)).collect(), token }
    }

    pub(super) fn meetings(&self) -> Vec<Meeting> {
        let meeting = |address: &String| Meeting {
            address: address.clone(),
            token: Some(self.token.clone()),
        };
        self.addresses.iter().map(meeting).collect()
    }
}

/// What rank 0 binds, and the names under which others may reach it.
pub(super) fn addresses(one_host: bool) -> (String, Vec<String>) {
    let given = std::env::var("TCH_CHECKPOINT_IFADDR").ok().filter(|given| !given.is_empty());
    match given {
        _ if one_host => ("127.0.0.1:0".into(), vec!["127.0.0.1".into()]),
        Some(given) => (with_port(&given, 0), vec![given]),
        None => {
            let primary = primary_address();
            let any = if matches!(primary, Some(IpAddr::V6(_))) { "[::]:0" } else { "0.0.0.0:0" };
            let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
            (any.into(), primary.map(|ip| ip.to_string()).into_iter().chain([name]).collect())
        }
    }
}

/// The address from which this host sends to others. No packet is sent: connecting a UDP socket
/// only asks the routing table.
fn primary_address() -> Option<IpAddr> {
    let ask = |local: &str, far: &str| {
        let socket = UdpSocket::bind(local).ok()?;
        socket.connect(far).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
    };
    // Addresses that are reserved for documentation, so nobody's.
    ask("0.0.0.0:0", "192.0.2.1:9").or_else(|| ask("[::]:0", "[2001:db8::1]:9"))
}

fn with_port(host: &str, port: u16) -> String {
    let is_bare_v6 = host.contains(':') && !host.starts_with('[');
    if is_bare_v6 { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_meets_at_loopback_only() {
        let (bind, names) = addresses(true);
        assert_eq!((bind.as_str(), names.as_slice()), ("127.0.0.1:0", &["127.0.0.1".into()][..]));
    }

    #[test]
    fn several_hosts_meet_where_others_can_reach_rank_0() {
        let (bind, names) = addresses(false);
        assert!(bind == "0.0.0.0:0" || bind == "[::]:0", "{bind}");
        assert!(!names.is_empty() && !names.iter().any(|n| n.starts_with("127.")), "{names:?}");
    }

    #[test]
    fn every_address_is_tried_with_port_and_token() {
        let place = Place::new(&["fd00::1".into(), "gpu1".into()], 7, "secret".into());
        let meetings = place.meetings();
        let addresses: Vec<&str> = meetings.iter().map(|m| m.address.as_str()).collect();
        assert_eq!(addresses, ["[fd00::1]:7", "gpu1:7"]);
        assert!(meetings.iter().all(|m| m.token.as_deref() == Some("secret")));
    }
}
