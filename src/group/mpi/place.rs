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
    let given = std::env::var("TCH_CHECKPOINT_IFADDR").ok();
    addresses_for(given.filter(|given| !given.is_empty()), one_host)
}

fn addresses_for(given: Option<String>, one_host: bool) -> (String, Vec<String>) {
    if one_host {
        return ("127.0.0.1:0".into(), vec!["127.0.0.1".into()]);
    }
    match given {
        Some(given) if is_unspecified(&given) => (with_port(&given, 0), names_of_this_host().1),
        Some(given) => (with_port(&given, 0), vec![given]),
        None => {
            let (is_v6, names) = names_of_this_host();
            (if is_v6 { "[::]:0" } else { "0.0.0.0:0" }.into(), names)
        }
    }
}

/// "Every interface" can be bound, but nobody can connect to it.
fn is_unspecified(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified())
}

/// Whether the primary address is one of IPv6; that address, and the host's name.
fn names_of_this_host() -> (bool, Vec<String>) {
    let primary = primary_address();
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let names = primary.map(|ip| ip.to_string()).into_iter().chain([name]).collect();
    (matches!(primary, Some(IpAddr::V6(_))), names)
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
        let (bind, names) = addresses_for(None, true);
        assert_eq!((bind.as_str(), names.as_slice()), ("127.0.0.1:0", &["127.0.0.1".into()][..]));
    }

    #[test]
    fn several_hosts_meet_where_others_can_reach_rank_0() {
        let (bind, names) = addresses_for(None, false);
        assert!(bind == "0.0.0.0:0" || bind == "[::]:0", "{bind}");
        assert!(!names.is_empty() && !names.iter().any(|n| n.starts_with("127.")), "{names:?}");
    }

    #[test]
    fn an_address_given_is_bound_and_announced_unless_it_stands_for_all() {
        let (bind, names) = addresses_for(Some("10.0.0.7".into()), false);
        assert_eq!((bind.as_str(), names), ("10.0.0.7:0", vec!["10.0.0.7".to_owned()]));
        for (given, bound) in [("0.0.0.0", "0.0.0.0:0"), ("::", "[::]:0"), ("[::]", "[::]:0")] {
            let (bind, names) = addresses_for(Some(given.into()), false);
            assert_eq!(bind, bound);
            assert!(!names.is_empty() && !names.iter().any(|n| is_unspecified(n)), "{names:?}");
        }
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
