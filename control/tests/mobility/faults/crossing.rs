//! Schedules in which SAs, probes and answers cross each other.

use mobikex::config::ReturnRoutability::{After, Off};
use mobikex_common::addr::Scheduler::{Backup, Packet, Redundant};

use super::{CALM, fault};
use crate::schedule::Step::*;
use crate::schedule::{Schedule, Setup};

pub fn all() -> Vec<(&'static str, Schedule)> {
    vec![
        fault(
            "both sides asked for the same Child SA at once, and had it twice",
            3_003_296,
            Setup { filters: true, addresses: [1, 2], ..CALM },
            &[
                (ReplaceBoth { addrs: [2, 1] }, 8),
                (Rekey { host: 1, child: true }, 56),
                (Remove { host: 1, addr: 2 }, 9677),
                (Down { host: 0, child: true }, 14),
            ],
        ),
        fault(
            "an IKE SA that was replaced while its machine slept was gone before the peer had got the answer that replaced it",
            3_014_896,
            Setup { routability: Off, v6: true, loss: 14, ..CALM },
            &[(Rekey { host: 1, child: false }, 23), (Jump { seconds: 600 }, 860)],
        ),
        fault(
            "a peer that had heard late of a new IKE SA was given up before it was asked there once more",
            3_037_262,
            Setup {
                scheduler: Redundant,
                routability: After,
                private: true,
                filters: true,
                addresses: [1, 2],
                ..CALM
            },
            &[(Rekey { host: 1, child: false }, 16), (ReplaceBoth { addrs: [1, 1] }, 249), (NatReboot, 8754)],
        ),
        fault(
            "a slow path was probed so quickly that no probe was ever overdue, and stayed up when it died",
            3_023_130,
            Setup {
                scheduler: Redundant,
                routability: After,
                encap: false,
                filters: true,
                v6: true,
                addresses: [2, 1],
                loss: 14,
                duplication: 10,
                ..CALM
            },
            &[
                (Traffic { host: 0, on: false }, 236),
                (HandRemove { host: 1, addr: 1, check: false }, 2703),
                (Remove { host: 0, addr: 2 }, 401),
                (Rekey { host: 0, child: true }, 6141),
                (Mtu { octets: 287 }, 28),
                (Replace { host: 1, addr: 1 }, 609),
                (Nat { on: true }, 4),
            ],
        ),
        fault(
            "a Child SA for one worker was asked for while the selectors changed, and one side took it for a common one",
            16_015_398,
            Setup {
                transport: true,
                scheduler: Redundant,
                routability: After,
                filters: true,
                loss: 2,
                reordering: 5,
                ..CALM
            },
            &[
                (Down { host: 1, child: true }, 1492),
                (Add { host: 1, addr: 0 }, 1752),
                (Add { host: 0, addr: 2 }, 1504),
                (ReplaceBoth { addrs: [0, 1] }, 3),
                (Up, 149),
                (Heal, 329),
                (Traffic { host: 1, on: true }, 1259),
                (Replace { host: 0, addr: 1 }, 2907),
            ],
        ),
        fault(
            "the answer for a worker's Child SA had the selectors in another order, which passed for narrowed ones",
            17_012_910,
            Setup { transport: true, addresses: [1, 2], loss: 5, duplication: 10, reordering: 5, ..CALM },
            &[
                (Add { host: 1, addr: 0 }, 250),
                (Remove { host: 0, addr: 0 }, 5733),
                (Down { host: 1, child: true }, 25),
            ],
        ),
        fault(
            "a Child SA for one worker was asked for before the answer that makes the common one had come",
            17_056_574,
            Setup { extended: false, routability: Off, private: true, addresses: [2, 1], ..CALM },
            &[
                (Jump { seconds: 5000 }, 11),
                (Add { host: 0, addr: 0 }, 2480),
                (Add { host: 0, addr: 2 }, 14),
                (Up, 22),
                (Sleep { host: 0, seconds: 100 }, 94),
            ],
        ),
        fault(
            "a check that was lost while ESP came through took the address away",
            21_061_364,
            Setup { scheduler: Redundant, routability: After, addresses: [2, 1], ..CALM },
            &[
                (ReplaceBoth { addrs: [0, 0] }, 8),
                (Rekey { host: 0, child: false }, 282),
                (Add { host: 1, addr: 1 }, 135),
                (Sleep { host: 0, seconds: 20 }, 1026),
                (Heal, 927),
                (Add { host: 0, addr: 0 }, 235),
                (Add { host: 0, addr: 1 }, 178),
                (Mtu { octets: 295 }, 5248),
                (Add { host: 0, addr: 1 }, 2761),
                (Add { host: 1, addr: 2 }, 203),
                (Remove { host: 0, addr: 2 }, 5863),
                (Heal, 249),
            ],
        ),
        fault(
            "rekeyings of the IKE SA and of a Child SA put each other off for ever over a slow way",
            22_050_958,
            Setup { scheduler: Redundant, routability: After, filters: true, ..CALM },
            &[
                (Nat { on: true }, 182),
                (Rekey { host: 1, child: true }, 4),
                (Rekey { host: 0, child: false }, 1856),
            ],
        ),
        fault(
            "a check that ended after the whole network had been away took an address that answered by then",
            22_030_489,
            Setup { scheduler: Packet, filters: true, addresses: [2, 1], loss: 10, ..CALM },
            &[
                (Rekey { host: 1, child: true }, 8944),
                (Replace { host: 1, addr: 0 }, 2690),
                (Rekey { host: 1, child: true }, 167),
                (ReplaceBoth { addrs: [0, 0] }, 1281),
                (Add { host: 1, addr: 0 }, 5726),
                (Add { host: 1, addr: 1 }, 250),
                (Traffic { host: 0, on: true }, 32),
                (Replace { host: 1, addr: 0 }, 27),
                (ReplaceBoth { addrs: [2, 2] }, 10120),
                (ReplaceBoth { addrs: [0, 0] }, 83),
                (Add { host: 1, addr: 1 }, 2455),
                (Add { host: 1, addr: 2 }, 2572),
                (Rekey { host: 0, child: true }, 2579),
            ],
        ),
        fault(
            "an answer that came late made an SA send again that had been replaced since",
            23_011_420,
            Setup {
                extended: false,
                scheduler: Redundant,
                routability: Off,
                addresses: [1, 1],
                loss: 14,
                reordering: 20,
                ..CALM
            },
            &[
                (Nat { on: false }, 20),
                (Rekey { host: 1, child: true }, 268),
                (Rekey { host: 0, child: true }, 93),
                (Rekey { host: 1, child: true }, 1381),
                (ReplaceBoth { addrs: [1, 2] }, 1501),
                (ReplaceBoth { addrs: [0, 1] }, 22),
                (Nat { on: true }, 224),
                (Rekey { host: 1, child: true }, 26),
            ],
        ),
        fault(
            "the end of another SA made one send that a simultaneous rekeying had made, before the peer had it",
            24_002_339,
            Setup {
                scheduler: Backup,
                filters: true,
                v6: true,
                addresses: [2, 1],
                loss: 10,
                reordering: 20,
                ..CALM
            },
            &[(Rekey { host: 1, child: true }, 2525), (Rekey { host: 0, child: true }, 378)],
        ),
        fault(
            "what an operator had asked for was answered when another IKE SA had the Child SAs",
            25_071_534,
            Setup { scheduler: Redundant, filters: true, addresses: [2, 1], ..CALM },
            &[
                (HandUpdate { host: 1, old: None, new: 4, check: false }, 1545),
                (Add { host: 1, addr: 2 }, 2947),
                (Rekey { host: 0, child: false }, 0),
                (ReplaceBoth { addrs: [1, 2] }, 877),
                (HandRemove { host: 1, addr: 0, check: false }, 762),
            ],
        ),
        fault(
            "a refusal that came late made an SA live again that had been deleted",
            27_030_983,
            Setup {
                transport: true,
                routability: Off,
                filters: true,
                addresses: [1, 2],
                loss: 14,
                duplication: 10,
                ..CALM
            },
            &[
                (Heal, 3549),
                (Replace { host: 0, addr: 1 }, 922),
                (Rekey { host: 0, child: true }, 28),
                (Rekey { host: 1, child: true }, 1797),
            ],
        ),
    ]
}
