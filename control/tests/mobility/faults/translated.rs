//! Schedules in which a NAT, or what looks like one, changes an address.

use mobikex::config::ReturnRoutability::{After, Off};
use mobikex_common::addr::Scheduler::{Backup, Packet, Redundant};

use super::{CALM, fault};
use crate::schedule::Step::*;
use crate::schedule::{Schedule, Setup};

pub fn all() -> Vec<(&'static str, Schedule)> {
    vec![
        fault(
            "a check was answered late from the very address, which counted as not reachable",
            3_004_279,
            Setup {
                extended: false,
                scheduler: Backup,
                routability: After,
                encap: false,
                filters: true,
                addresses: [2, 2],
                ..CALM
            },
            &[
                (Replace { host: 0, addr: 1 }, 10822),
                (Sleep { host: 0, seconds: 20 }, 1993),
                (Replace { host: 0, addr: 0 }, 993),
                (Sleep { host: 0, seconds: 100 }, 8724),
            ],
        ),
        fault(
            "a NAT with another address was not followed where the peer had an IPv6 address as well",
            3_027_978,
            Setup { scheduler: Redundant, routability: Off, private: true, filters: true, ..CALM },
            &[
                (Add { host: 0, addr: 2 }, 4428),
                (NatReboot, 1703),
                (ReplaceBoth { addrs: [2, 1] }, 9468),
                (Rekey { host: 0, child: false }, 2912),
            ],
        ),
        fault(
            "an initiator whose port an attacker had changed counted as checked there",
            3_063_170,
            Setup { encap: false, addresses: [2, 1], ..CALM },
            &[
                (Down { host: 1, child: false }, 1),
                (ForgePort { host: 0, datagrams: 5 }, 51),
                (Up, 26),
                (Replace { host: 0, addr: 2 }, 2773),
            ],
        ),
        fault(
            "an UPDATE through a new NAT did not show the NAT, so that its next mapping was not followed",
            3_064_791,
            Setup { scheduler: Redundant, encap: false, ..CALM },
            &[
                (Nat { on: true }, 3549),
                (Add { host: 1, addr: 0 }, 6109),
                (NatReboot, 315),
                (Rekey { host: 0, child: false }, 22),
            ],
        ),
        fault(
            "a NAT of the family that the IKE SA did not use was not followed",
            3_083_733,
            Setup { private: true, filters: true, addresses: [2, 2], loss: 5, reordering: 20, ..CALM },
            &[
                (ReplaceBoth { addrs: [0, 1] }, 1243),
                (NatReboot, 1254),
                (NatRebind { addr: 1 }, 5905),
                (ReplaceBoth { addrs: [2, 0] }, 4708),
                (Nat { on: true }, 875),
                (Add { host: 1, addr: 1 }, 208),
                (Add { host: 1, addr: 0 }, 109),
                (Add { host: 1, addr: 2 }, 611),
            ],
        ),
        fault(
            "an answer over another pair than the one in use showed a NAT that was none, and the ends of the IKE SA got different families",
            3_091_501,
            Setup { extended: false, addresses: [2, 2], loss: 5, ..CALM },
            &[
                (Add { host: 1, addr: 2 }, 2535),
                (Add { host: 0, addr: 2 }, 7),
                (Replace { host: 1, addr: 0 }, 183),
                (Remove { host: 1, addr: 2 }, 1446),
                (ReplaceBoth { addrs: [2, 2] }, 1),
            ],
        ),
        fault(
            "after a NAT got another address the peer was not followed where its operator had named its inner address too",
            4_010_114,
            Setup { scheduler: Backup, routability: Off, private: true, loss: 14, duplication: 10, ..CALM },
            &[
                (Traffic { host: 1, on: true }, 271),
                (Nat { on: true }, 1788),
                (HandRemove { host: 0, addr: 4, check: false }, 528),
                (Add { host: 1, addr: 1 }, 146),
                (Rekey { host: 1, child: false }, 1976),
                (Rekey { host: 0, child: true }, 998),
                (Remove { host: 0, addr: 0 }, 266),
                (Add { host: 0, addr: 0 }, 147),
                (Heal, 1052),
                (NatReboot, 585),
            ],
        ),
        fault(
            "a check that an attacker had led to another address of the peer proved the one that it was meant for",
            4_041_916,
            Setup { addresses: [1, 2], ..CALM },
            &[
                (HandAdd { host: 1, addr: 3, check: false }, 305),
                (ForgeDestination { host: 0, addr: 1, datagrams: 4 }, 1913),
            ],
        ),
        fault(
            "the failed check of an old mapping left only an address to which there was no way",
            4_047_153,
            Setup { private: true, filters: true, addresses: [2, 2], ..CALM },
            &[
                (Remove { host: 0, addr: 1 }, 1),
                (Nat { on: true }, 239),
                (Remove { host: 0, addr: 0 }, 24),
                (Add { host: 0, addr: 2 }, 2412),
            ],
        ),
        fault(
            "two IKE SAs of one peer, an old and a new one, asked an address of nobody in the same second",
            4_051_993,
            Setup {
                extended: false,
                scheduler: Redundant,
                routability: After,
                encap: false,
                v6: true,
                addresses: [2, 1],
                loss: 2,
                duplication: 10,
                reordering: 20,
                ..CALM
            },
            &[
                (Rekey { host: 0, child: true }, 10297),
                (ReplaceBoth { addrs: [2, 0] }, 856),
                (ForgeSource { host: 0, victim: 0, datagrams: 3 }, 2657),
                (Replace { host: 1, addr: 0 }, 1727),
                (ForgeSource { host: 0, victim: 1, datagrams: 4 }, 2599),
                (ReplaceBoth { addrs: [2, 2] }, 12),
                (Rekey { host: 1, child: false }, 2501),
            ],
        ),
        fault(
            "where the peer went back to after a check that failed was not checked again",
            5_012_816,
            Setup { extended: false, scheduler: Backup, filters: true, v6: true, addresses: [2, 1], ..CALM },
            &[(ForgePort { host: 0, datagrams: 4 }, 15), (Replace { host: 1, addr: 1 }, 725)],
        ),
        fault(
            "an address of a family that we did not have was forgotten, and not told again for long",
            8_032_439,
            Setup { scheduler: Packet, private: true, filters: true, addresses: [1, 2], ..CALM },
            &[
                (Add { host: 1, addr: 2 }, 2927),
                (NoWay { addrs: [1, 1] }, 10221),
                (Add { host: 1, addr: 2 }, 7269),
                (Replace { host: 0, addr: 1 }, 10705),
                (Add { host: 0, addr: 0 }, 1079),
                (Add { host: 0, addr: 2 }, 4759),
                (Remove { host: 0, addr: 0 }, 10344),
            ],
        ),
        fault(
            "after a move to the other family and back no NAT was thought of, so that its new mapping was not followed",
            6_066_638,
            Setup {
                scheduler: Backup,
                private: true,
                addresses: [1, 2],
                loss: 10,
                duplication: 10,
                reordering: 5,
                ..CALM
            },
            &[
                (NatReboot, 61),
                (Add { host: 0, addr: 2 }, 2788),
                (Replace { host: 1, addr: 2 }, 4031),
                (Remove { host: 1, addr: 2 }, 805),
            ],
        ),
        fault(
            "a request that was made before a NAT came showed that there was none",
            5_037_639,
            Setup { scheduler: Redundant, routability: After, encap: false, ..CALM },
            &[
                (ForgeDestination { host: 1, addr: 1, datagrams: 2 }, 1562),
                (ReplaceBoth { addrs: [2, 2] }, 92),
                (Rekey { host: 1, child: false }, 5707),
                (Nat { on: true }, 1551),
                (ReplaceBoth { addrs: [1, 2] }, 13),
            ],
        ),
        fault(
            "of a peer behind a NAT only an address was left to which there was no way, though it was heard from another one",
            9_003_322,
            Setup {
                scheduler: Packet,
                routability: After,
                private: true,
                filters: true,
                addresses: [2, 1],
                ..CALM
            },
            &[
                (ReplaceBoth { addrs: [2, 2] }, 1041),
                (Add { host: 1, addr: 0 }, 2602),
                (ForgePort { host: 0, datagrams: 6 }, 1179),
                (Add { host: 0, addr: 0 }, 2368),
                (Remove { host: 1, addr: 2 }, 2887),
            ],
        ),
        fault(
            "a path was used since IKE had come through, though its NAT stopped plain ESP",
            13_032_984,
            Setup { scheduler: Backup, encap: false, v6: true, addresses: [1, 2], ..CALM },
            &[
                (ReplaceBoth { addrs: [0, 0] }, 288),
                (Add { host: 1, addr: 1 }, 136),
                (Add { host: 0, addr: 1 }, 24),
                (Nat { on: true }, 110),
                (Remove { host: 0, addr: 0 }, 1266),
            ],
        ),
        fault(
            "a new Child SA began where somebody on the way had written that the request came from, and nothing checked it",
            13_016_677,
            Setup { transport: true, scheduler: Backup, routability: Off, ..CALM },
            &[
                (Jump { seconds: 5000 }, 1633),
                (ForgeSource { host: 0, victim: 0, datagrams: 3 }, 1245),
                (Up, 20),
            ],
        ),
        fault(
            "a check for a NAT came to nothing, and what the peer said of the same address meanwhile was not checked",
            13_028_832,
            Setup { scheduler: Packet, filters: true, v6: true, addresses: [2, 2], ..CALM },
            &[
                (Replace { host: 1, addr: 1 }, 686),
                (Rekey { host: 1, child: true }, 25),
                (Replace { host: 0, addr: 2 }, 195),
                (HandRemove { host: 1, addr: 0, check: false }, 2779),
                (ReplaceBoth { addrs: [0, 2] }, 677),
            ],
        ),
        fault(
            "an address that nothing led to was checked for ever, since what was before it was no better",
            14_009_369,
            Setup {
                extended: false,
                scheduler: Backup,
                routability: After,
                filters: true,
                v6: true,
                addresses: [1, 2],
                loss: 10,
                ..CALM
            },
            &[
                (ForgeSource { host: 1, victim: 0, datagrams: 1 }, 2199),
                (Add { host: 0, addr: 1 }, 802),
                (Remove { host: 1, addr: 0 }, 2612),
                (Traffic { host: 1, on: false }, 237),
                (ForgePort { host: 0, datagrams: 5 }, 1873),
                (Remove { host: 1, addr: 2 }, 26),
                (Add { host: 0, addr: 0 }, 11656),
            ],
        ),
        fault(
            "what the peer had dropped was not told again, since something else was told time and again",
            17_071_994,
            Setup { scheduler: Packet, private: true, ..CALM },
            &[
                (Add { host: 1, addr: 1 }, 14),
                (Add { host: 1, addr: 2 }, 10147),
                (Deafen { host: 1, addr: 2 }, 42),
                (Jump { seconds: 60 }, 401),
                (Replace { host: 0, addr: 1 }, 284),
                (Add { host: 0, addr: 2 }, 1912),
                (Nat { on: true }, 2581),
            ],
        ),
        fault(
            "the address in use was behind a NAT, so that nobody told again of it after the peer had dropped it",
            18_026_982,
            Setup { scheduler: Backup, private: true, addresses: [2, 1], ..CALM },
            &[
                (Traffic { host: 1, on: true }, 1560),
                (Cut { host: 0, addr: 2 }, 2576),
                (Deafen { host: 0, addr: 1 }, 7892),
                (Traffic { host: 1, on: true }, 2363),
                (ReplaceBoth { addrs: [2, 0] }, 1095),
                (Add { host: 1, addr: 2 }, 2791),
            ],
        ),
        fault(
            "the only address of a new Child SA was one that somebody on the way had written, though the IKE SA knew better",
            19_069_237,
            Setup { scheduler: Packet, filters: true, ..CALM },
            &[
                (Down { host: 0, child: true }, 204),
                (ForgeSource { host: 0, victim: 0, datagrams: 6 }, 418),
                (Up, 2851),
            ],
        ),
        fault(
            "back from a family without a NAT, ESP went out plain until somebody asked whether the peer was alive",
            19_015_777,
            Setup {
                extended: false,
                scheduler: Redundant,
                encap: false,
                filters: true,
                addresses: [2, 2],
                ..CALM
            },
            &[
                (Add { host: 0, addr: 1 }, 122),
                (Traffic { host: 0, on: false }, 7345),
                (Add { host: 0, addr: 2 }, 205),
                (Nat { on: true }, 21),
                (Heal, 7968),
                (Remove { host: 1, addr: 1 }, 4702),
                (ReplaceBoth { addrs: [2, 2] }, 3),
            ],
        ),
        fault(
            "beside an IKE SA without a NAT there was one on another path, which ESP went over plain",
            21_054_293,
            Setup { routability: After, encap: false, private: true, ..CALM },
            &[
                (Add { host: 1, addr: 2 }, 18),
                (Replace { host: 0, addr: 2 }, 2897),
                (Add { host: 1, addr: 1 }, 7972),
                (HandUpdate { host: 1, old: Some(2), new: 1, check: false }, 234),
            ],
        ),
        fault(
            "a check for a NAT was not answered there, and stayed open for ever",
            21_099_343,
            Setup { v6: true, addresses: [2, 1], ..CALM },
            &[
                (ReplaceBoth { addrs: [1, 1] }, 193),
                (Replace { host: 0, addr: 2 }, 15),
                (Add { host: 0, addr: 0 }, 6817),
                (Replace { host: 1, addr: 2 }, 47),
            ],
        ),
        fault(
            "what a NAT kept from being told was not told when the NAT was gone",
            22_011_152,
            Setup {
                scheduler: Packet,
                routability: Off,
                encap: false,
                filters: true,
                addresses: [2, 2],
                reordering: 5,
                ..CALM
            },
            &[
                (Traffic { host: 1, on: true }, 11899),
                (Nat { on: true }, 8362),
                (Replace { host: 0, addr: 1 }, 56),
                (Remove { host: 1, addr: 1 }, 16),
                (Heal, 25),
                (Heal, 15),
                (Heal, 78),
                (Add { host: 0, addr: 1 }, 7),
                (Nat { on: false }, 32),
                (Cut { host: 0, addr: 2 }, 640),
                (Deafen { host: 1, addr: 2 }, 273),
                (Nat { on: false }, 2154),
            ],
        ),
        fault(
            "two addresses behind one NAT took each other's place at the peer",
            21_041_188,
            Setup { scheduler: Backup, encap: false, filters: true, reordering: 20, ..CALM },
            &[
                (HandRemove { host: 0, addr: 2, check: false }, 5),
                (Replace { host: 0, addr: 1 }, 7722),
                (Add { host: 0, addr: 1 }, 1463),
                (HandUpdate { host: 1, old: Some(0), new: 1, check: true }, 263),
                (Replace { host: 1, addr: 2 }, 995),
                (HandAdd { host: 0, addr: 4, check: true }, 3),
                (HandUpdate { host: 0, old: Some(0), new: 0, check: true }, 743),
                (Nat { on: true }, 2446),
                (ReplaceBoth { addrs: [2, 1] }, 138),
                (Remove { host: 0, addr: 2 }, 220),
                (Add { host: 0, addr: 0 }, 62),
                (Add { host: 0, addr: 1 }, 284),
                (Add { host: 0, addr: 0 }, 1218),
            ],
        ),
        fault(
            "a move without a name went over several pairs, and the peer took another address than was thought",
            25_068_678,
            Setup {
                scheduler: Redundant,
                routability: Off,
                private: true,
                filters: true,
                addresses: [2, 2],
                ..CALM
            },
            &[
                (Nat { on: true }, 1600),
                (Replace { host: 0, addr: 1 }, 235),
                (Add { host: 1, addr: 2 }, 2376),
                (ReplaceBoth { addrs: [2, 1] }, 172),
                (Nat { on: true }, 1826),
                (Traffic { host: 1, on: true }, 2127),
            ],
        ),
        fault(
            "what a NAT shows toward one address of a host took the place of what it shows toward another",
            30_000_179,
            Setup {
                encap: false,
                private: true,
                filters: true,
                per_destination: true,
                addresses: [1, 2],
                ..CALM
            },
            &[],
        ),
        fault(
            "the IKE SA went to a port of the NAT that only Child SAs which had ended still knew",
            25_086_606,
            Setup {
                scheduler: Packet,
                encap: false,
                private: true,
                filters: true,
                addresses: [2, 2],
                ..CALM
            },
            &[
                (Down { host: 0, child: true }, 234),
                (Heal, 1840),
                (Remove { host: 0, addr: 1 }, 118),
                (Replace { host: 1, addr: 1 }, 0),
            ],
        ),
    ]
}
