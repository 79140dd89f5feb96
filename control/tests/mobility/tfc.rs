//! Padding against who counts octets (TFC): not toward a peer that takes none (RFC 7296 1.3.1).

use mobikex::config::{Config, Connection};
use mobikex::ike::Command;
use mobikex_common::wire::ike::{NotifyType as N, Payload};

use crate::puppet::{Nat, Puppet, at, plain, say};
use crate::world::{A, B};

fn padding(me: usize) -> Config {
    plain(me, |c: &mut Connection| c.children[0].tfc_padding = 1000)
}

/// What the packet path is told after the endpoint has called the peer, or was called.
fn told(calls: bool, more: &[Payload]) -> (Vec<u16>, String) {
    let said = [&[say(N::MOBIKE_SUPPORTED, [])], more].concat();
    let puppet = if calls {
        let mut puppet = Puppet::new(padding(0), &[A[0]]);
        puppet.command(Command::Up { connection: "home".into(), child: None });
        let (_, auth) = puppet.meet(Nat::Absent);
        puppet.accept(&auth, &said);
        puppet
    } else {
        let mut puppet = Puppet::new(padding(1), &[B[0]]);
        let first = (at(A[0], 500), at(B[0], 500));
        puppet.connect(first, (at(A[0], 4500), at(B[0], 4500)), Some(first), &said);
        puppet
    };
    (puppet.children.values().map(|params| params.tfc_padding).collect(), puppet.story())
}

#[test]
fn a_peer_that_takes_no_padding_gets_none() {
    for calls in [true, false] {
        let (octets, story) = told(calls, &[]);
        assert_eq!(octets, [1000], "{story}");
        let (octets, story) = told(calls, &[say(N::ESP_TFC_PADDING_NOT_SUPPORTED, [])]);
        assert_eq!(octets, [0], "{story}");
    }
}
